//! The kernel programs that this binary carries.

use super::Error;

/// The bytes of the object, aligned as its headers need it.
#[repr(C, align(8))]
struct Aligned<B: ?Sized>(B);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/lb-ebpf.o")));

/// The object, unless this binary was built without it.
pub(super) fn bytes() -> Result<&'static [u8], Error> {
    if OBJECT.0.is_empty() { Err(Error::NoObject) } else { Ok(&OBJECT.0) }
}
