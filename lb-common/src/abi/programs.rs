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
    /// ICMP at `tc_ingress`.
    IcmpIngress = 8,
    /// ICMP at `tc_egress`.
    IcmpEgress = 9,
    /// ICMP at `tc_ingress_l3`.
    IcmpIngressL3 = 10,
    /// ICMP at `tc_egress_l3`.
    IcmpEgressL3 = 11,
    /// Fragments at `tc_ingress`.
    FragmentIngress = 12,
    /// Fragments at `tc_egress`.
    FragmentEgress = 13,
    /// Fragments at `tc_ingress_l3`.
    FragmentIngressL3 = 14,
    /// Fragments at `tc_egress_l3`.
    FragmentEgressL3 = 15,
    /// With what `tc_translate_ingress` goes on where no record stands.
    BeginIngress = 16,
    /// The same of `tc_translate_egress`.
    BeginEgress = 17,
    /// The same of `tc_translate_ingress_l3`.
    BeginIngressL3 = 18,
    /// The same of `tc_translate_egress_l3`.
    BeginEgressL3 = 19,
    /// With what `tc_translate_ingress` goes on where the record may be that of a flow that is sent on.
    ForwardIngress = 20,
    /// The same of `tc_translate_ingress_l3`.
    ForwardIngressL3 = 21,
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

    /// All slots in use, in the order in which they are filled: what others of these go on with comes
    /// before those.
    pub const ALL: [Self; 22] = [
        Self::RefuseIngress,
        Self::RefuseIngressL3,
        Self::RefuseEgress,
        Self::RefuseEgressL3,
        Self::BeginIngress,
        Self::BeginEgress,
        Self::BeginIngressL3,
        Self::BeginEgressL3,
        Self::ForwardIngress,
        Self::ForwardIngressL3,
        Self::TranslateIngress,
        Self::TranslateEgress,
        Self::TranslateIngressL3,
        Self::TranslateEgressL3,
        Self::IcmpIngress,
        Self::IcmpEgress,
        Self::IcmpIngressL3,
        Self::IcmpEgressL3,
        Self::FragmentIngress,
        Self::FragmentEgress,
        Self::FragmentIngressL3,
        Self::FragmentEgressL3,
    ];

    /// The program that belongs there.
    pub const fn program(self) -> &'static str {
        match self {
            Self::TranslateIngress => "tc_translate_ingress",
            Self::TranslateEgress => "tc_translate_egress",
            Self::TranslateIngressL3 => "tc_translate_ingress_l3",
            Self::TranslateEgressL3 => "tc_translate_egress_l3",
            Self::IcmpIngress => "tc_icmp_ingress",
            Self::IcmpEgress => "tc_icmp_egress",
            Self::IcmpIngressL3 => "tc_icmp_ingress_l3",
            Self::IcmpEgressL3 => "tc_icmp_egress_l3",
            Self::FragmentIngress => "tc_fragment_ingress",
            Self::FragmentEgress => "tc_fragment_egress",
            Self::FragmentIngressL3 => "tc_fragment_ingress_l3",
            Self::FragmentEgressL3 => "tc_fragment_egress_l3",
            Self::BeginIngress => "tc_begin_ingress",
            Self::BeginEgress => "tc_begin_egress",
            Self::BeginIngressL3 => "tc_begin_ingress_l3",
            Self::BeginEgressL3 => "tc_begin_egress_l3",
            Self::ForwardIngress => "tc_forward_ingress",
            Self::ForwardIngressL3 => "tc_forward_ingress_l3",
            Self::RefuseIngress => "tc_refuse",
            Self::RefuseIngressL3 => "tc_refuse_l3",
            Self::RefuseEgress => "tc_refuse_egress",
            Self::RefuseEgressL3 => "tc_refuse_egress_l3",
        }
    }
}

/// Index of a program in `XDP_PROGRAMS` and `XDP_PROGRAMS_FRAGS`, as above: the kernel keeps programs of
/// several types, and those that take packets in several buffers, apart.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlySlot {
    /// What `xdp_ingress` finds no record for.
    Begin = 0,
    /// What it finds a record for that does not say all.
    Forward = 1,
}

impl EarlySlot {
    /// Number of elements of either.
    pub const COUNT: u32 = 4;

    /// All slots in use.
    pub const ALL: [Self; 2] = [Self::Begin, Self::Forward];

    /// The program that belongs there, that of packets in several buffers where `frags` says so.
    pub const fn program(self, frags: bool) -> &'static str {
        match (self, frags) {
            (Self::Begin, false) => "xdp_begin",
            (Self::Begin, true) => "xdp_begin_frags",
            (Self::Forward, false) => "xdp_forward",
            (Self::Forward, true) => "xdp_forward_frags",
        }
    }
}
