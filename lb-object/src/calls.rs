//! Calls of kernel functions (kfuncs) in the object.
//!
//! aya 0.14 does not know them. A call of an undefined function is a relocation; here it becomes
//! what the kernel wants, a call by BTF id, or, on a kernel without that function, an instruction
//! that returns null, which the programs take for "not there".

use object::read::elf::{ElfFile64, FileHeader};
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget};

use crate::Error;

/// `BPF_JMP | BPF_CALL`.
const CALL: u8 = 0x85;
/// `BPF_PSEUDO_KFUNC_CALL`, in the high half of the register byte.
const KERNEL_FUNCTION: u8 = 2 << 4;
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;

/// Turns every call of `function` into one of the kernel function with this BTF id, or, without
/// one, into "return null".
pub(crate) fn fit(object: &mut [u8], function: &str, id: Option<u32>) -> Result<(), Error> {
    let places = places(object, function)?;
    let instruction: [u8; 8] = match id {
        Some(id) => {
            let [a, b, c, d] = id.to_ne_bytes();
            [CALL, KERNEL_FUNCTION, 0, 0, a, b, c, d]
        }
        None => [MOVE, 0, 0, 0, 0, 0, 0, 0],
    };
    for at in places {
        let place = at.checked_add(8).and_then(|end| object.get_mut(at..end));
        let place = place.ok_or(Error::Damaged("a call lies outside of it"))?;
        if place.first() != Some(&CALL) {
            return Err(Error::Damaged("a call is no call"));
        }
        place.copy_from_slice(&instruction);
    }
    Ok(())
}

/// File offsets of the calls of an undefined function.
fn places(object: &[u8], function: &str) -> Result<Vec<usize>, Error> {
    let file: ElfFile64<'_, Endianness> =
        ElfFile64::parse(object).map_err(|_| Error::Damaged("it is no ELF file"))?;
    if file.elf_header().e_machine(file.endian()) != object::elf::EM_BPF {
        return Err(Error::Damaged("it is not for BPF"));
    }
    let mut places = Vec::new();
    for section in file.sections() {
        let Some((start, _)) = section.file_range() else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { continue };
            let symbol = file
                .symbol_by_index(index)
                .map_err(|_| Error::Damaged("a relocation names no symbol"))?;
            if symbol.is_undefined() && symbol.name() == Ok(function) {
                let at = start.checked_add(offset).and_then(|at| usize::try_from(at).ok());
                places.push(at.ok_or(Error::Damaged("a relocation lies outside of it"))?);
            }
        }
    }
    Ok(places)
}
