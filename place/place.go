// Package place chooses the host of a new machine.
//
// Pick is pure. The chosen host still has the last word: it answers by reserving, so that two who
// choose at once cannot fill the same place; whoever is refused picks again without that host.
package place

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	volant "github.com/volant-edge/volant"
)

// Request says what is to be placed.
type Request struct {
	Org    volant.OrgID
	App    volant.AppID
	Region volant.Region // empty: any
	Guest  volant.Guest
	Avoid  []volant.NodeID // hosts that refused it
}

// Host is one host as its room and its machines are known.
type Host struct {
	Node     volant.NodeID
	Region   volant.Region
	Silent   bool // nothing was heard from it for long
	Closed   bool // takes no new machines: draining, or told so
	MemoryMB int  // free: neither held nor reserved
	// OverheadMB is the memory that a machine takes there beside its guest's.
	OverheadMB int
	Shared     int // shared vCPUs that may still be promised
	Cores      int // whole cores that are free
	// Strong says that its engine keeps tenants apart; a host without it serves one organization, unless Mixed.
	Strong   bool
	Mixed    bool
	Orgs     []volant.OrgID // which have machines there
	Siblings int            // machines of the app there
}

// Choice is a host and why it was chosen.
type Choice struct {
	Node   volant.NodeID
	Region volant.Region
	Text   string
}

// Pick returns the best host for the request: among those which can take it the one with the fewest
// machines of the app, then the most free memory. Where there is none the error is ErrNoCapacity and
// says of each host why not.
func Pick(r Request, hosts []Host) (Choice, error) {
	g := r.Guest.WithDefaults()
	var fit []Host
	var refused []string
	elsewhere := 0
	for _, h := range hosts {
		switch why := unfit(r, g, h); {
		case r.Region != "" && h.Region != r.Region:
			elsewhere++
		case why != "":
			refused = append(refused, fmt.Sprintf("%s %s", h.Node, why))
		default:
			fit = append(fit, h)
		}
	}
	if len(fit) == 0 {
		return Choice{}, none(r, g, refused, elsewhere)
	}
	best := slices.MinFunc(fit, func(a, b Host) int {
		return cmp.Or(
			cmp.Compare(a.Siblings, b.Siblings), cmp.Compare(b.MemoryMB, a.MemoryMB),
			cmp.Compare(b.Shared, a.Shared), cmp.Compare(a.Node, b.Node))
	})
	text := fmt.Sprintf("%s in %s has %d machines of the app and %d MB free", best.Node, best.Region, best.Siblings, best.MemoryMB)
	if n := len(fit) - 1; n > 0 {
		text += fmt.Sprintf("; the fewest, then the most, of %d hosts with room", n+1)
	}
	if len(refused) > 0 {
		text += "; not " + strings.Join(first(refused, 5), ", not ")
	}
	return Choice{best.Node, best.Region, text}, nil
}

// Fits says how many such machines the hosts of the request's region can take.
func Fits(r Request, hosts []Host) int {
	g := r.Guest.WithDefaults()
	n := 0
	for _, h := range hosts {
		if r.Region != "" && h.Region != r.Region || unfit(r, g, h) != "" {
			continue
		}
		cpus := h.Shared
		if g.CPUKind == volant.CPUPerformance {
			cpus = h.Cores
		}
		n += min(h.MemoryMB/(g.MemoryMB+h.OverheadMB), cpus/g.CPUs)
	}
	return n
}

// unfit says why h cannot take the machine, or "".
func unfit(r Request, g volant.Guest, h Host) string {
	switch {
	case slices.Contains(r.Avoid, h.Node):
		return "refused it"
	case h.Silent:
		return "is silent"
	case h.Closed:
		return "takes no new machines"
	case !h.Strong && !h.Mixed && slices.ContainsFunc(h.Orgs, func(o volant.OrgID) bool { return o != r.Org }):
		return "serves another organization, and its engine is not for several"
	case h.MemoryMB < g.MemoryMB+h.OverheadMB:
		return fmt.Sprintf("has %d MB free", max(0, h.MemoryMB))
	case g.CPUKind == volant.CPUPerformance && h.Cores < g.CPUs:
		return fmt.Sprintf("has %d whole cores free", max(0, h.Cores))
	case g.CPUKind != volant.CPUPerformance && h.Shared < g.CPUs:
		return fmt.Sprintf("has %d shared vCPUs to promise", max(0, h.Shared))
	}
	return ""
}

func none(r Request, g volant.Guest, refused []string, elsewhere int) error {
	in := "anywhere"
	if r.Region != "" {
		in = "in " + string(r.Region)
	}
	text := fmt.Sprintf("no host %s has room for a %s machine with %d vCPU and %d MB", in, g.CPUKind, g.CPUs, g.MemoryMB)
	switch {
	case len(refused) > 0:
		text += ": " + strings.Join(first(refused, 5), ", ")
	case elsewhere > 0:
		text += fmt.Sprintf(": all %d hosts are in other regions", elsewhere)
	default:
		text += ": there is no host"
	}
	return volant.Errorf(volant.ErrNoCapacity, "%s", text).WithRemedy("add a host, or make machines smaller or fewer")
}

// first bounds a list of reasons to n, and says how many were left out.
func first(list []string, n int) []string {
	if len(list) <= n {
		return list
	}
	return append(slices.Clone(list[:n]), fmt.Sprintf("and %d more", len(list)-n))
}
