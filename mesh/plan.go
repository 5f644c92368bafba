package mesh

import (
	"net/netip"
	"slices"
	"time"
)

// session is one key at the other end, as an engine has it or shall have it.
type session struct {
	key       Key
	endpoint  netip.AddrPort
	allowed   netip.Addr // the address that it may send from and is sent to; invalid: none
	keepalive time.Duration
	handshake time.Time // the last; zero: none yet
	rx, tx    int64
}

// change is one step on the way to what is wanted. A zero field leaves things as they are.
type change struct {
	key       Key
	remove    bool
	endpoint  netip.AddrPort
	allow     netip.Addr
	disallow  bool // it may have no address
	keepalive time.Duration
}

// sessions are those that a Config asks for. used says whether a next key has been used already: then the address
// is its.
func (c *Config) sessions(used func(Key) bool) []session {
	var out []session
	for _, p := range c.Peers {
		now := session{key: p.Key, endpoint: p.Endpoint, allowed: p.Addr, keepalive: keepalive}
		if p.Next.IsZero() {
			out = append(out, now)
			continue
		}
		// Until it is used the next key has no endpoint: there is nobody yet who could answer.
		next := session{key: p.Next}
		if used(p.Next) {
			next.allowed, next.keepalive, now.allowed = p.Addr, keepalive, netip.Addr{}
		}
		out = append(out, now, next)
	}
	return out
}

// plan says what to change so that have becomes want. Endpoints that were configured before stay as the engine has
// them: a peer that moved is where it was last heard. It is pure.
func plan(have, want []session, configured map[Key]netip.AddrPort) []change {
	var out []change
	old := map[Key]session{}
	for _, h := range have {
		old[h.key] = h
		if !slices.ContainsFunc(want, func(w session) bool { return w.key == h.key }) {
			out = append(out, change{key: h.key, remove: true})
		}
	}
	var after []change // taking an address away comes last: who gets it takes it in one step
	for _, w := range want {
		h, exists := old[w.key]
		c := change{key: w.key}
		if w.endpoint.IsValid() && w.endpoint != h.endpoint && (!h.endpoint.IsValid() || w.endpoint != configured[w.key]) {
			c.endpoint = w.endpoint
		}
		if w.allowed.IsValid() && w.allowed != h.allowed {
			c.allow = w.allowed
		}
		if w.keepalive != h.keepalive {
			c.keepalive = w.keepalive
		}
		if !exists || c != (change{key: w.key}) {
			out = append(out, c)
		}
		if !w.allowed.IsValid() && h.allowed.IsValid() {
			after = append(after, change{key: w.key, disallow: true})
		}
	}
	return append(out, after...)
}

// linkMTU is the interface's MTU that the links towards the peers leave. It is pure.
func linkMTU(links []int) int {
	mtu := MaxMTU
	for _, l := range links {
		mtu = min(mtu, l-Overhead)
	}
	return max(mtu, MinMTU)
}

// ladder are the sizes that are tried on a path, largest first: what WireGuard pads to, so that no size is sent as a
// larger one.
func ladder(mtu int) []int {
	sizes := []int{mtu}
	for s := (mtu - 1) / 16 * 16; s > MinMTU; s -= 16 {
		sizes = append(sizes, s)
	}
	if mtu > MinMTU {
		sizes = append(sizes, MinMTU)
	}
	return sizes
}
