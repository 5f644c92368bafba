package hostnet

import (
	"errors"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/addrpool"
)

// Bits of conntrack, from include/uapi/linux/netfilter/nf_conntrack_common.h.
const (
	ctInvalid     = 1 << 0
	ctEstablished = 1 << 1
	ctRelated     = 1 << 2
	ctNew         = 1 << 3
	ctDNAT        = 1 << 5 // of the status
	ctReply       = 1      // direction
)

// inetRules are all rules for IP. Chains are short and the same for any number of machines.
func (b *builder) inetRules(cfg Config, flows int, own4, own6 *nftables.Set) {
	tap := tapPrefix(cfg.Node)

	pre := b.chain("source", nftables.ChainHookPrerouting, -310, nftables.ChainTypeFilter)
	b.rule(pre, "not from a machine", inName(tap, expr.CmpOpNeq), accept())
	b.rule(pre, "another MAC", etherFrom(guestMAC(), expr.CmpOpNeq), drop())
	b.rule(pre, "own address", isIPv4(), inNameAndSource4(), in(own4), accept())
	b.rule(pre, "own address", isIPv6(), inNameAndSource6(), in(own6), accept())
	b.rule(pre, "neighbour discovery", isIPv6(), source6(), in(b.fixed6("neighbours", []netip.Addr{netip.IPv6Unspecified(), guestLinkLocal()})), discovery(), accept())
	b.rule(pre, "any other source", drop())

	input := b.chain("to_host", nftables.ChainHookInput, -10, nftables.ChainTypeFilter)
	b.rule(input, "not from a machine", inName(tap, expr.CmpOpNeq), accept())
	b.rule(input, "replies to the host", ctState(ctEstablished|ctRelated), ctDirection(ctReply), accept())
	b.rule(input, "neighbour discovery", isIPv6(), discovery(), accept())
	b.rule(input, "services of the host", drop())

	// A regular chain is made before the rules that jump to it.
	out, in4 := b.plainChain("from_machine"), b.plainChain("to_machine")
	fwd := b.chain("forward", nftables.ChainHookForward, -10, nftables.ChainTypeFilter)
	b.rule(fwd, "", inName(tap, expr.CmpOpEq), jump(out.Name))
	b.rule(fwd, "", outName(tap, expr.CmpOpEq), jump(in4.Name))

	b.rule(in4, "replies from outside", ctState(ctEstablished|ctRelated), ctDirection(ctReply), accept())
	b.rule(in4, "past the proxy", drop())

	b.egress(cfg, flows, out)

	post := b.chain("nat", nftables.ChainHookPostrouting, 100, nftables.ChainTypeNAT)
	b.rule(post, "", isIPv4(), source4In(cfg.Pool4), outName(tap, expr.CmpOpNeq), masquerade())
	b.rule(post, "", isIPv6(), source6(), in(b.ranges("machines6", nftables.TypeIP6Addr, networks6())), outName(tap, expr.CmpOpNeq), masquerade())
}

// egress is what a machine may reach beyond its host.
func (b *builder) egress(cfg Config, flows int, out *nftables.Chain) {
	tap := tapPrefix(cfg.Node)
	b.rule(out, "other machines", outName(tap, expr.CmpOpEq), drop())
	b.rule(out, "services that the host publishes", ctStatus(ctDNAT), drop())
	b.rule(out, "unknown flows, which NAT does not see", ctState(ctInvalid), drop())
	b.rule(out, "open flows", ctState(ctEstablished|ctRelated), accept())
	if flows > 0 {
		b.rule(out, "too many flows", isIPv4(), ctState(ctNew), source4(), countOver(b.counting("flows4", nftables.TypeIPAddr), flows), drop())
		b.rule(out, "too many flows", isIPv6(), ctState(ctNew), source6(), countOver(b.counting("flows6", nftables.TypeIP6Addr), flows), drop())
	}
	b.rule(out, "never reached", isIPv4(), dest4(), in(b.ranges("never4", nftables.TypeIPAddr, append(never4(), cfg.Pool4))), drop())
	b.rule(out, "never reached", isIPv6(), dest6(), in(b.ranges("never6", nftables.TypeIP6Addr, never6())), drop())
	dns4, dns6 := splitAddrs(cfg.DNS)
	if len(dns4) > 0 {
		set := b.fixed4("resolvers4", dns4)
		b.rule(out, "resolvers", isIPv4(), dest4(), in(set), toResolver(unix.IPPROTO_UDP), accept())
		b.rule(out, "resolvers", isIPv4(), dest4(), in(set), toResolver(unix.IPPROTO_TCP), accept())
	}
	if len(dns6) > 0 {
		set := b.fixed6("resolvers6", dns6)
		b.rule(out, "resolvers", isIPv6(), dest6(), in(set), toResolver(unix.IPPROTO_UDP), accept())
		b.rule(out, "resolvers", isIPv6(), dest6(), in(set), toResolver(unix.IPPROTO_TCP), accept())
	}
	allow4, allow6 := splitPrefixes(cfg.Allow)
	if len(allow4) > 0 {
		b.rule(out, "exceptions", isIPv4(), dest4(), in(b.ranges("allow4", nftables.TypeIPAddr, allow4)), accept())
	}
	if len(allow6) > 0 {
		b.rule(out, "exceptions", isIPv6(), dest6(), in(b.ranges("allow6", nftables.TypeIP6Addr, allow6)), accept())
	}
	deny4, deny6 := splitPrefixes(cfg.Deny)
	if len(deny4) > 0 {
		b.rule(out, "denied ranges", isIPv4(), dest4(), in(b.ranges("deny4", nftables.TypeIPAddr, deny4)), drop())
	}
	if len(deny6) > 0 {
		b.rule(out, "denied ranges", isIPv6(), dest6(), in(b.ranges("deny6", nftables.TypeIP6Addr, deny6)), drop())
	}
}

// arpIn is NF_ARP_IN: the hooks of ARP count differently.
const arpIn = 0

// arpRules let a machine ask for its gateway only, under its own address: each other question would
// leave an entry in the host's neighbour table.
func (b *builder) arpRules(cfg Config, own *nftables.Set) {
	c := b.chain("neighbours", nftables.ChainHookRef(arpIn), 0, nftables.ChainTypeFilter)
	b.rule(c, "not from a machine", inName(tapPrefix(cfg.Node), expr.CmpOpNeq), accept())
	gw := at(cfg.Pool4, gatewayIndex).As4()
	b.rule(c, "own address asks for the gateway", payload(1, expr.PayloadBaseNetworkHeader, 24, 4), equal(gw[:]),
		meta(expr.MetaKeyIIFNAME), payload(2, expr.PayloadBaseNetworkHeader, 14, 4), in(own), accept())
	b.rule(c, "anything else", drop())
}

// never4 and never6 are ranges that no exception opens: link-local, loopback, multicast, reserved, and the mesh of the
// nodes, where a machine whose packets are masqueraded would speak as its host.
func never4() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("240.0.0.0/4"),
	}
}

func never6() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"), volant.MeshPrefix,
	}
}

// builder collects rules for one transaction and the first error.
type builder struct {
	nft    *nftables.Conn
	table  *nftables.Table
	chains map[*nftables.Chain]int
	err    error
}

func (b *builder) keep(err error) { b.err = errors.Join(b.err, err) }

func (b *builder) chain(name string, hook *nftables.ChainHook, prio nftables.ChainPriority, typ nftables.ChainType) *nftables.Chain {
	policy := nftables.ChainPolicyAccept
	c := b.nft.AddChain(&nftables.Chain{Name: name, Table: b.table, Hooknum: hook, Priority: &prio, Type: typ, Policy: &policy})
	b.chains[c] = 0
	return c
}

func (b *builder) plainChain(name string) *nftables.Chain {
	c := b.nft.AddChain(&nftables.Chain{Name: name, Table: b.table})
	b.chains[c] = 0
	return c
}

func (b *builder) rule(c *nftables.Chain, comment string, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: b.table, Chain: c}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	if comment != "" {
		r.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
	}
	b.nft.AddRule(r)
	b.chains[c]++
}

func (b *builder) set(name string, types ...nftables.SetDatatype) *nftables.Set {
	s := &nftables.Set{Table: b.table, Name: name, KeyType: types[0]}
	if len(types) > 1 {
		typ, err := nftables.ConcatSetType(types...)
		b.keep(err)
		s.KeyType, s.Concatenation = typ, true
	}
	b.keep(b.nft.AddSet(s, nil))
	return s
}

func (b *builder) fixed4(name string, addrs []netip.Addr) *nftables.Set {
	return b.fixed(name, nftables.TypeIPAddr, addrs)
}

func (b *builder) fixed6(name string, addrs []netip.Addr) *nftables.Set {
	return b.fixed(name, nftables.TypeIP6Addr, addrs)
}

func (b *builder) fixed(name string, typ nftables.SetDatatype, addrs []netip.Addr) *nftables.Set {
	s := &nftables.Set{Table: b.table, Name: name, KeyType: typ}
	var elems []nftables.SetElement
	for _, a := range addrs {
		elems = append(elems, nftables.SetElement{Key: a.AsSlice()})
	}
	b.keep(b.nft.AddSet(s, elems))
	return s
}

// ranges is a set of prefixes: the kernel keeps each as its first address and the one after its last.
func (b *builder) ranges(name string, typ nftables.SetDatatype, ps []netip.Prefix) *nftables.Set {
	s := &nftables.Set{Table: b.table, Name: name, KeyType: typ, Interval: true}
	var elems []nftables.SetElement
	for _, p := range outermost(ps) {
		elems = append(elems, nftables.SetElement{Key: p.Addr().AsSlice()})
		if next := addrpool.Last(p).Next(); next.IsValid() {
			elems = append(elems, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
		}
	}
	b.keep(b.nft.AddSet(s, elems))
	return s
}

// counting is a set that the kernel fills itself.
func (b *builder) counting(name string, typ nftables.SetDatatype) *nftables.Set {
	s := &nftables.Set{Table: b.table, Name: name, KeyType: typ, Dynamic: true, Size: 1 << 16}
	b.keep(b.nft.AddSet(s, nil))
	return s
}

// The words of rules. Register 1 holds what is compared; a concatenation goes on in the registers behind.

func meta(key expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: 1}} }

func payload(reg uint32, base expr.PayloadBase, offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: length}}
}

func compare(op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: 1, Data: data}}
}

func equal(data []byte) []expr.Any { return compare(expr.CmpOpEq, data) }

func in(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

// inName compares the first bytes of a name, so it matches all taps of the node.
func inName(prefix string, op expr.CmpOp) []expr.Any {
	return append(meta(expr.MetaKeyIIFNAME), compare(op, []byte(prefix))...)
}

func outName(prefix string, op expr.CmpOp) []expr.Any {
	return append(meta(expr.MetaKeyOIFNAME), compare(op, []byte(prefix))...)
}

func etherFrom(mac []byte, op expr.CmpOp) []expr.Any {
	return append(payload(1, expr.PayloadBaseLLHeader, 6, 6), compare(op, mac)...)
}

func isIPv4() []expr.Any {
	return append(meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV4})...)
}

func isIPv6() []expr.Any {
	return append(meta(expr.MetaKeyNFPROTO), equal([]byte{unix.NFPROTO_IPV6})...)
}

func source4() []expr.Any { return payload(1, expr.PayloadBaseNetworkHeader, 12, 4) }
func dest4() []expr.Any   { return payload(1, expr.PayloadBaseNetworkHeader, 16, 4) }
func source6() []expr.Any { return payload(1, expr.PayloadBaseNetworkHeader, 8, 16) }
func dest6() []expr.Any   { return payload(1, expr.PayloadBaseNetworkHeader, 24, 16) }

func inNameAndSource4() []expr.Any {
	return append(meta(expr.MetaKeyIIFNAME), payload(2, expr.PayloadBaseNetworkHeader, 12, 4)...)
}

func inNameAndSource6() []expr.Any {
	return append(meta(expr.MetaKeyIIFNAME), payload(2, expr.PayloadBaseNetworkHeader, 8, 16)...)
}

func source4In(p netip.Prefix) []expr.Any {
	mask := ipNet(p).Mask
	return append(append(source4(), &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)}), equal(p.Addr().AsSlice())...)
}

// discovery is ICMPv6 neighbour solicitation and advertisement.
func discovery() []expr.Any {
	e := append(meta(expr.MetaKeyL4PROTO), equal([]byte{unix.IPPROTO_ICMPV6})...)
	e = append(e, payload(1, expr.PayloadBaseTransportHeader, 0, 1)...)
	return append(e, &expr.Range{Op: expr.CmpOpEq, Register: 1, FromData: []byte{135}, ToData: []byte{136}})
}

// toResolver matches packets of a protocol to port 53.
func toResolver(proto byte) []expr.Any {
	e := append(meta(expr.MetaKeyL4PROTO), equal([]byte{proto})...)
	e = append(e, payload(1, expr.PayloadBaseTransportHeader, 2, 2)...)
	return append(e, equal(binaryutil.BigEndian.PutUint16(53))...)
}

func ctState(bits uint32) []expr.Any  { return ctBits(expr.CtKeySTATE, bits) }
func ctStatus(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATUS, bits) }

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func ctDirection(d byte) []expr.Any {
	return append([]expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}}, equal([]byte{d})...)
}

// countOver matches when the address in register 1 has more than n open flows.
func countOver(s *nftables.Set, n int) []expr.Any {
	return []expr.Any{&expr.Dynset{
		SrcRegKey: 1, SetName: s.Name, SetID: s.ID, Operation: unix.NFT_DYNSET_OP_ADD,
		Exprs: []expr.Any{&expr.Connlimit{Count: uint32(n), Flags: expr.NFT_CONNLIMIT_F_INV}},
	}}
}

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// drop counts, so that an operator sees what is refused (nft list ruleset).
func drop() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// outermost drops prefixes that lie inside another, since the kernel's sets take no overlaps.
func outermost(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range ps {
		inside := false
		for j, q := range ps {
			if i != j && q.Overlaps(p) && (q.Bits() < p.Bits() || q.Bits() == p.Bits() && j < i) {
				inside = true
			}
		}
		if !inside {
			out = append(out, p.Masked())
		}
	}
	return out
}

func splitPrefixes(ps []netip.Prefix) (v4, v6 []netip.Prefix) {
	for _, p := range ps {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return v4, v6
}

func splitAddrs(as []netip.Addr) (v4, v6 []netip.Addr) {
	for _, a := range as {
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6
}
