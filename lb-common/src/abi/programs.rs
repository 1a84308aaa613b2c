//! Programs that others go on with (tail calls).

/// Index of a program in `PROGRAMS`. Numbers are part of the ABI: a program of one version may go on
/// with that of another while an agent is replaced.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgramSlot {
    /// The second half of `tc_ingress`.
    TranslateIngress = 0,
    /// The second half of `tc_egress`.
    TranslateEgress = 1,
    /// The second half of `tc_ingress_l3`.
    TranslateIngressL3 = 2,
    /// The second half of `tc_egress_l3`.
    TranslateEgressL3 = 3,
}

impl ProgramSlot {
    /// Number of elements of `PROGRAMS`.
    pub const COUNT: u32 = 32;

    /// All slots in use.
    pub const ALL: [Self; 4] = [
        Self::TranslateIngress,
        Self::TranslateEgress,
        Self::TranslateIngressL3,
        Self::TranslateEgressL3,
    ];

    /// The program that belongs there.
    pub const fn program(self) -> &'static str {
        match self {
            Self::TranslateIngress => "tc_translate_ingress",
            Self::TranslateEgress => "tc_translate_egress",
            Self::TranslateIngressL3 => "tc_translate_ingress_l3",
            Self::TranslateEgressL3 => "tc_translate_egress_l3",
        }
    }
}
