package hostnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/netdump"
)

// Cleanup removes all that a node made in this server's kernel: taps, rules, local routes. It needs
// nothing of the data directory. It returns what it removed.
func Cleanup(ctx context.Context, node volant.NodeID) (removed []string, err error) {
	if !nodeID.MatchString(string(node)) {
		return nil, volant.Invalidf("node ID %q: it has 8 hex digits", string(node))
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	nl, nft, err := dial()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	var errs []error
	did := func(what string, err error) {
		if err != nil {
			errs = append(errs, err)
			return
		}
		removed = append(removed, what)
	}
	taps, err := listTaps(nl, node)
	errs = append(errs, err)
	for _, t := range taps {
		did("tap "+t.Name, deleteLink(nl, t.Name))
	}
	local, err := localRoutes(nl, node)
	errs = append(errs, err)
	for _, p := range local {
		did("local route "+p.String(), removeLocal(nl, node, p))
	}
	// Rules go last: until then a tap whose process lives on stays shut in.
	tables, err := ourTables(nft)
	errs = append(errs, err)
	for _, t := range tables {
		if t.Name == tableName(node) {
			nft.DelTable(t)
			did("firewall table "+familyName(t.Family)+" "+t.Name, nft.Flush())
		}
	}
	return removed, errors.Join(errs...)
}

// Nodes lists the nodes which have left something in this server's kernel.
func Nodes(ctx context.Context) ([]volant.NodeID, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	nl, nft, err := dial()
	if err != nil {
		return nil, err
	}
	defer nl.Close()
	found := map[volant.NodeID]bool{}
	links, err := netdump.Whole(nl.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if name := l.Attrs().Name; len(name) == 13 {
			node := volant.NodeID(name[1:9])
			if _, ok := tapIndex(node, name); ok && nodeID.MatchString(string(node)) {
				found[node] = true
			}
		}
	}
	tables, err := ourTables(nft)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		found[volant.NodeID(strings.TrimPrefix(t.Name, tableName("")))] = true
	}
	err = eachLocalRoute(nl, func(metric int, _ netip.Prefix) {
		found[volant.NodeID(fmt.Sprintf("%08x", uint32(metric)))] = true
	})
	return slices.Sorted(maps.Keys(found)), err
}

func dial() (*netlink.Handle, *nftables.Conn, error) {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, nil, fmt.Errorf("netlink: %w", err)
	}
	nft, err := nftables.New()
	if err != nil {
		nl.Close()
		return nil, nil, fmt.Errorf("nftables: %w", err)
	}
	return nl, nft, nil
}

func ourTables(nft *nftables.Conn) ([]*nftables.Table, error) {
	tables, err := nft.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list firewall tables: %w", err)
	}
	return slices.DeleteFunc(tables, func(t *nftables.Table) bool {
		node, ok := strings.CutPrefix(t.Name, tableName(""))
		return !ok || !nodeID.MatchString(node)
	}), nil
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	default: // the others have no table of ours
		return fmt.Sprint(f)
	}
}
