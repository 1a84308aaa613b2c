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
    /// Answers what `tc_ingress` refuses.
    RefuseIngress = 4,
    /// Answers what `tc_ingress_l3` refuses.
    RefuseIngressL3 = 5,
    /// Decides on what `tc_uplink_egress` suspects.
    RefuseEgress = 6,
    /// Decides on what `tc_uplink_egress_l3` suspects.
    RefuseEgressL3 = 7,
}

impl ProgramSlot {
    /// Number of elements of `PROGRAMS`.
    pub const COUNT: u32 = 32;

    /// All slots in use.
    pub const ALL: [Self; 8] = [
        Self::TranslateIngress,
        Self::TranslateEgress,
        Self::TranslateIngressL3,
        Self::TranslateEgressL3,
        Self::RefuseIngress,
        Self::RefuseIngressL3,
        Self::RefuseEgress,
        Self::RefuseEgressL3,
    ];

    /// The program that belongs there.
    pub const fn program(self) -> &'static str {
        match self {
            Self::TranslateIngress => "tc_translate_ingress",
            Self::TranslateEgress => "tc_translate_egress",
            Self::TranslateIngressL3 => "tc_translate_ingress_l3",
            Self::TranslateEgressL3 => "tc_translate_egress_l3",
            Self::RefuseIngress => "tc_refuse",
            Self::RefuseIngressL3 => "tc_refuse_l3",
            Self::RefuseEgress => "tc_refuse_egress",
            Self::RefuseEgressL3 => "tc_refuse_egress_l3",
        }
    }
}
