//! Keys and values of maps that are our own types.
#![expect(unsafe_code, reason = "map keys and values of our own types need aya's marker")]

use lb_common::abi::{
    Backend, Flow, FlowKey, FragmentKey, FragmentRecord, FrontendKey, Interface, Ip, ServiceCidr,
    V4, V6,
};

/// A key or value of a map.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Plain<T>(pub(crate) T);

/// What a source range is looked up by, behind the length of its prefix.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RangeData<const N: usize> {
    pub(crate) service_port: u32,
    pub(crate) addr: Ip<N>,
}

macro_rules! plain {
    ($($type:ty),+) => {
        $(
            // SAFETY: `repr(C)` with integers only and without padding, as the assertions of
            // lb-common say; any bytes are a value of it.
            unsafe impl aya::Pod for Plain<$type> {}
        )+
    };
}

plain!(
    FragmentKey<V4>,
    FragmentKey<V6>,
    FragmentRecord,
    Interface,
    Ip<V4>,
    Ip<V6>,
    RangeData<V4>,
    RangeData<V6>,
    ServiceCidr<V4>,
    ServiceCidr<V6>,
    Backend,
    FrontendKey<V4>,
    FrontendKey<V6>,
    FlowKey<V4>,
    FlowKey<V6>,
    Flow<V4>,
    Flow<V6>
);
