//! The kernel's type information (BTF), as far as it is needed: ids of functions and places of
//! members. Layout: `Documentation/bpf/btf.rst`. aya reads it too, but shows neither.

/// Type information in its raw form.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Offset of each type in `types`; index 0 is `void`.
    offsets: Vec<u32>,
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;

#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: u32,
    /// Member offsets hold a width too.
    bit_fields: bool,
    /// Where what follows the header begins.
    rest: usize,
}

impl<'a> Btf<'a> {
    /// Parses little-endian or big-endian BTF of this machine; `None` if it is not BTF.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != 0xeb9f {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let part = |at: usize| {
            let start = header.checked_add(word(bytes, at)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, at + 4)? as usize)?)
        };
        let mut btf = Self { types: part(8)?, strings: part(16)?, offsets: vec![u32::MAX] };
        let mut at = 0_usize;
        while at < btf.types.len() {
            btf.offsets.push(u32::try_from(at).ok()?);
            let of = btf.type_at(at)?;
            at = of.rest.checked_add(size_behind(of.kind, of.members)?)?;
        }
        Some(btf)
    }

    /// BTF id of a function.
    pub fn function(&self, name: &str) -> Option<u32> {
        self.find(FUNC, name).map(|(id, _)| id)
    }

    /// Offset in bits of a member of a structure, also inside of unnamed parts of it.
    pub fn member_bit(&self, structure: &str, member: &str) -> Option<u32> {
        let (_, of) = self.find(STRUCT, structure)?;
        self.member(of, member, 0)
    }

    fn member(&self, of: Type, wanted: &str, depth: u32) -> Option<u32> {
        // Real ones are nested three deep; damaged ones could name themselves.
        if depth > 8 {
            return None;
        }
        for index in 0..of.members as usize {
            let at = of.rest + 12 * index;
            let (name, id) = (word(self.types, at)?, word(self.types, at + 4)?);
            let offset = word(self.types, at + 8)?;
            let bit = if of.bit_fields { offset & 0x00ff_ffff } else { offset };
            if self.string(name) == wanted.as_bytes() {
                return Some(bit);
            }
            let inner = self.offsets.get(id as usize).and_then(|at| self.type_at(*at as usize));
            if name == 0
                && let Some(inner) = inner
                && matches!(inner.kind, STRUCT | UNION)
                && let Some(found) = self.member(inner, wanted, depth + 1)
            {
                return bit.checked_add(found);
            }
        }
        None
    }

    fn find(&self, kind: u32, name: &str) -> Option<(u32, Type)> {
        (1_u32..).zip(self.offsets.get(1..)?).find_map(|(id, at)| {
            let of = self.type_at(*at as usize)?;
            (of.kind == kind && self.string(of.name) == name.as_bytes()).then_some((id, of))
        })
    }

    fn type_at(&self, at: usize) -> Option<Type> {
        let info = word(self.types, at.checked_add(4)?)?;
        Some(Type {
            name: word(self.types, at)?,
            kind: (info >> 24) & 0x1f,
            members: info & 0xffff,
            bit_fields: info >> 31 != 0,
            rest: at.checked_add(12)?,
        })
    }

    fn string(&self, at: u32) -> &'a [u8] {
        let bytes = self.strings.get(at as usize..).unwrap_or_default();
        bytes.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// Bytes behind the header of a type, by kind and number of members.
fn size_behind(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, section, 64-bit enumeration.
        STRUCT | UNION | 15 | 19 => 12 * members,
        // Enumeration, function prototype.
        6 | 13 => 8 * members,
        // Pointer, forward, type definition, qualifiers, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct { union { struct { int a:3; int wanted:2; }; }; }` and a function.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0wanted\0call\0a\0";
        let types: Vec<u32> = [
            // 1: int
            vec![0, 1 << 24, 4, 32],
            // 2: struct { a:3 at 0; wanted:2 at 3 }, with widths
            vec![0, (STRUCT << 24) | 2 | (1 << 31), 4, 19, 1, 3 << 24, 7, 1, (2 << 24) | 3],
            // 3: union { 2 }
            vec![0, (UNION << 24) | 1, 4, 0, 2, 0],
            // 4: struct outer { int at 0; 3 at bit 64 }
            vec![1, (STRUCT << 24) | 2, 16, 19, 1, 0, 0, 3, 64],
            // 5: function prototype without parameters; 6: function
            vec![0, 13 << 24, 0],
            vec![14, FUNC << 24, 5],
        ]
        .concat();
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, length(&types), length(&types), length(strings)] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_bit_field_inside_of_unnamed_parts_is_found() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("BTF");
        assert_eq!(btf.member_bit("outer", "wanted"), Some(67));
        assert_eq!(btf.member_bit("outer", "other"), None);
        assert_eq!(btf.function("call"), Some(6));
        assert_eq!(btf.function("outer"), None);
    }

    #[test]
    fn damaged_type_information_is_refused_or_read_without_a_panic() {
        let bytes = sample();
        for length in 0..bytes.len() {
            let cut = bytes.get(..length).unwrap_or_default();
            if let Some(btf) = Btf::parse(cut) {
                let _found = btf.member_bit("outer", "wanted");
            }
        }
        for index in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[index] ^= 0xff;
            if let Some(btf) = Btf::parse(&bytes) {
                let _found = (btf.member_bit("outer", "wanted"), btf.function("call"));
            }
        }
    }
}
