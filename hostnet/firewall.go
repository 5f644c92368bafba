package hostnet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
)

// firewall is a rule set that was installed, and the sets that its members are in.
type firewall struct {
	inet, arp        *nftables.Table // arp is nil where the kernel knows none
	own4, own6       *nftables.Set   // tap and source address of each machine
	ownARP           *nftables.Set
	chains           map[*nftables.Chain]int // rules in each
	arpErr, flowsErr error                   // why a part is missing
}

func tableName(node volant.NodeID) string { return "volant_" + string(node) }

// installLocked replaces the node's rules as a whole.
func (n *Net) installLocked() error {
	fw, err := n.install(n.cfg.MaxFlows)
	if err != nil && n.cfg.MaxFlows > 0 {
		// A kernel without nft_connlimit takes all but the rule that bounds flows.
		flowsErr := err
		if fw, err = n.install(0); err == nil {
			fw.flowsErr = flowsErr
		}
	}
	if err != nil {
		return volant.Errorf(volant.ErrPrecondition, "firewall: %v", err).
			WithRemedy("the kernel needs nf_tables with nf_conntrack and nft_masq (modprobe nf_tables nft_ct nft_masq), and Volant root")
	}
	if fw.arpErr = n.installARP(fw); fw.arpErr != nil {
		n.cfg.Log.Warn("firewall has no rules for ARP", "err", fw.arpErr)
	}
	n.fw = fw
	return nil
}

func (n *Net) install(flows int) (*firewall, error) {
	t := &nftables.Table{Name: tableName(n.cfg.Node), Family: nftables.TableFamilyINet}
	n.nft.AddTable(t)
	n.nft.DelTable(t)
	n.nft.AddTable(t)
	b := &builder{nft: n.nft, table: t, chains: map[*nftables.Chain]int{}}
	fw := &firewall{inet: t, chains: b.chains}
	fw.own4 = b.set("own4", nftables.TypeIFName, nftables.TypeIPAddr)
	fw.own6 = b.set("own6", nftables.TypeIFName, nftables.TypeIP6Addr)
	b.inetRules(n.cfg, flows, fw.own4, fw.own6)
	for _, id := range slices.Sorted(maps.Keys(n.members)) {
		b.keep(fw.addInet(n.nft, n.members[id]))
	}
	// Flush empties the batch in any case, so that a failed build leaves nothing for the next one.
	return fw, errors.Join(b.err, n.nft.Flush())
}

func (n *Net) installARP(fw *firewall) error {
	t := &nftables.Table{Name: tableName(n.cfg.Node), Family: nftables.TableFamilyARP}
	n.nft.AddTable(t)
	n.nft.DelTable(t)
	n.nft.AddTable(t)
	b := &builder{nft: n.nft, table: t, chains: map[*nftables.Chain]int{}}
	own := b.set("own", nftables.TypeIFName, nftables.TypeIPAddr)
	b.arpRules(n.cfg, own)
	for _, id := range slices.Sorted(maps.Keys(n.members)) {
		b.keep(n.nft.SetAddElements(own, []nftables.SetElement{{Key: ownKey(n.members[id].tap, n.members[id].addr)}}))
	}
	if err := errors.Join(b.err, n.nft.Flush()); err != nil {
		return err
	}
	fw.arp, fw.ownARP = t, own
	maps.Copy(fw.chains, b.chains)
	return nil
}

// admitLocked lets the packets of a machine's tap through.
func (n *Net) admitLocked(id volant.MachineID, m member) error {
	old, ok := n.members[id]
	if ok && old == m {
		return nil
	}
	if ok {
		if err := n.expelLocked(id); err != nil {
			return err
		}
	}
	n.members[id] = m
	err := errors.Join(n.fw.addInet(n.nft, m), n.fw.addARP(n.nft, m), n.nft.Flush())
	if errors.Is(err, unix.ENOENT) { // somebody removed our table
		err = n.installLocked()
	}
	if err != nil {
		delete(n.members, id)
		return fmt.Errorf("firewall: admit %s: %w", m.tap, err)
	}
	return nil
}

// expelLocked stops the packets of a machine's tap.
func (n *Net) expelLocked(id volant.MachineID) error {
	m, ok := n.members[id]
	if !ok {
		return nil
	}
	delete(n.members, id)
	delete(n.plugged, id)
	err := errors.Join(n.fw.removeInet(n.nft, m), n.fw.removeARP(n.nft, m), n.nft.Flush())
	if errors.Is(err, unix.ENOENT) {
		err = n.installLocked()
	}
	if err != nil {
		return fmt.Errorf("firewall: expel %s: %w", m.tap, err)
	}
	return nil
}

func (f *firewall) addInet(c *nftables.Conn, m member) error {
	err := c.SetAddElements(f.own4, []nftables.SetElement{{Key: ownKey(m.tap, m.addr)}})
	if m.addr6.IsValid() {
		err = errors.Join(err, c.SetAddElements(f.own6, []nftables.SetElement{{Key: ownKey(m.tap, m.addr6)}}))
	}
	return err
}

func (f *firewall) removeInet(c *nftables.Conn, m member) error {
	err := c.SetDeleteElements(f.own4, []nftables.SetElement{{Key: ownKey(m.tap, m.addr)}})
	if m.addr6.IsValid() {
		err = errors.Join(err, c.SetDeleteElements(f.own6, []nftables.SetElement{{Key: ownKey(m.tap, m.addr6)}}))
	}
	return err
}

func (f *firewall) addARP(c *nftables.Conn, m member) error {
	if f.arp == nil {
		return nil
	}
	return c.SetAddElements(f.ownARP, []nftables.SetElement{{Key: ownKey(m.tap, m.addr)}})
}

func (f *firewall) removeARP(c *nftables.Conn, m member) error {
	if f.arp == nil {
		return nil
	}
	return c.SetDeleteElements(f.ownARP, []nftables.SetElement{{Key: ownKey(m.tap, m.addr)}})
}

// wholeLocked says whether all rules and all members are still there.
func (n *Net) wholeLocked() (bool, error) {
	for chain, want := range n.fw.chains {
		rules, err := n.nft.GetRules(chain.Table, chain)
		if errors.Is(err, unix.ENOENT) || err == nil && len(rules) != want {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("firewall: list rules: %w", err)
		}
	}
	elems, err := n.nft.GetSetElements(n.fw.own4)
	if errors.Is(err, unix.ENOENT) || err == nil && len(elems) != len(n.members) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("firewall: list machines: %w", err)
	}
	return true, nil
}

// ownKey is the key of a set of (tap, address): each part padded to whole registers.
func ownKey(tap string, a netip.Addr) []byte {
	key := make([]byte, unix.IFNAMSIZ, unix.IFNAMSIZ+16)
	copy(key, tap)
	return append(key, a.AsSlice()...)
}
