package proxy

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// Bodies of facts: a byte of format, then varints.
const (
	factFormat = 1
	portsMost  = 64 // of one machine, in a fact
)

// The phases as facts have them, in the order of their numbers.
func phaseCodes() []Phase {
	return []Phase{PhaseGone, PhaseServing, PhaseBooting, PhaseSuspended, PhaseStopped}
}

const (
	routeDraining = 1 << iota
	routeAskLeave
)

// routeFact tells other nodes how connections are led to a machine.
func routeFact(m *Machine) live.Fact {
	code := max(slices.Index(phaseCodes(), m.Phase), 0)
	f := byte(0)
	if m.Draining {
		f |= routeDraining
	}
	if m.AskLeave {
		f |= routeAskLeave
	}
	b := append(make([]byte, 0, 32), factFormat, byte(code), f)
	b = binary.AppendUvarint(b, m.Seq)
	failing := m.Failing[:min(len(m.Failing), portsMost)]
	b = binary.AppendUvarint(b, uint64(len(failing)))
	for _, port := range failing {
		b = binary.AppendUvarint(b, uint64(port))
	}
	return live.Fact{Key: live.Key{Kind: live.Route, ID: string(m.ID)}, Body: b}
}

// decodeRoute is a machine's state in a fact of its host. A fact that is no more says that the host does not have it.
func decodeRoute(f *live.Fact) (RemoteState, error) {
	if f.Gone {
		return RemoteState{Phase: PhaseGone}, nil
	}
	d := live.NewScanner(f.Body)
	if d.Byte() != factFormat {
		return RemoteState{}, malformed(f)
	}
	code, flags := int(d.Byte()), d.Byte()
	s := RemoteState{Phase: PhaseGone, Seq: d.Uvarint(), Draining: flags&routeDraining != 0, AskLeave: flags&routeAskLeave != 0}
	if phases := phaseCodes(); code < len(phases) {
		s.Phase = phases[code]
	}
	n := d.Uvarint()
	if n > portsMost {
		return RemoteState{}, malformed(f)
	}
	for range n {
		s.Failing = append(s.Failing, scanPort(d))
	}
	if d.Bad() {
		return RemoteState{}, malformed(f)
	}
	return s, nil
}

// slotsFact tells other nodes the slots that are held of a machine's ports.
func slotsFact(id volant.MachineID, epoch uint64, ports []RemoteSlots) live.Fact {
	slices.SortFunc(ports, func(a, b RemoteSlots) int { return cmp.Compare(a.Port, b.Port) })
	ports = ports[:min(len(ports), portsMost)]
	b := append(make([]byte, 0, 32), factFormat)
	b = binary.AppendUvarint(b, epoch)
	b = binary.AppendUvarint(b, uint64(len(ports)))
	for _, p := range ports {
		b = binary.AppendUvarint(b, uint64(p.Port))
		b = binary.AppendUvarint(b, uint64(max(p.Held, 0))) //nolint:gosec // not negative
		b = binary.AppendUvarint(b, p.Version.Seq)
	}
	return live.Fact{Key: live.Key{Kind: live.Slots, ID: string(id)}, Body: b}
}

// DecodeSlots are the slots that are held of a machine, by port, in a fact of its host.
func DecodeSlots(f live.Fact) (volant.MachineID, []RemoteSlots, error) {
	id := volant.MachineID(f.Key.ID)
	if f.Key.Kind != live.Slots {
		return "", nil, malformed(&f)
	}
	if f.Gone {
		return id, nil, nil
	}
	d := live.NewScanner(f.Body)
	if d.Byte() != factFormat {
		return "", nil, malformed(&f)
	}
	epoch := d.Uvarint()
	n := d.Uvarint()
	if n > portsMost {
		return "", nil, malformed(&f)
	}
	var out []RemoteSlots
	for range n {
		s := RemoteSlots{Port: scanPort(d)}
		s.Held = int(min(d.Uvarint(), slotsMost))
		s.Version = live.Version{Epoch: epoch, Seq: d.Uvarint()}
		out = append(out, s)
	}
	if d.Bad() {
		return "", nil, malformed(&f)
	}
	return id, out, nil
}

// loadID names one group of an app.
func loadID(k appKey) string { return string(k.id) + "/" + k.group }

// loadFact tells other nodes the demand for one group of an app that enters at this one.
func loadFact(k appKey, l Load) live.Fact {
	l.Slots, l.Accepting, l.Deaf, l.Refused = nil, nil, nil, 0
	f := live.Fact{Key: live.Key{Kind: live.Load, ID: loadID(k)}}
	if len(l.Waiting) == 0 && len(l.Entering) == 0 && l.Peak == 0 && len(l.Avoid) == 0 {
		f.Gone = true
		return f
	}
	for most := max(len(l.Waiting), len(l.Entering), len(l.Spilled), len(l.Avoid)); ; most /= 2 {
		l.Waiting, l.Entering, l.Spilled = greatest(l.Waiting, most), greatest(l.Entering, most), greatest(l.Spilled, most)
		l.Avoid = l.Avoid[:min(len(l.Avoid), most)]
		b, err := json.Marshal(l)
		if err == nil && len(b) <= live.MaxBody || most == 0 {
			f.Body = b
			return f
		}
	}
}

// greatest are the regions with the most, at most n of them.
func greatest(m map[volant.Region]int, n int) map[volant.Region]int {
	if len(m) <= n {
		return m
	}
	keys := slices.SortedFunc(maps.Keys(m), func(a, b volant.Region) int {
		return cmp.Or(cmp.Compare(m[b], m[a]), cmp.Compare(a, b))
	})
	out := make(map[volant.Region]int, n)
	for _, k := range keys[:n] {
		out[k] = m[k]
	}
	return out
}

// DecodeLoad is the demand that a fact of the node where clients enter tells. One that is no more is no demand.
func DecodeLoad(f live.Fact) (Load, error) {
	id, group, ok := strings.Cut(f.Key.ID, "/")
	if f.Key.Kind != live.Load || !ok || id == "" {
		return Load{}, malformed(&f)
	}
	var l Load
	if !f.Gone {
		if err := json.Unmarshal(f.Body, &l); err != nil {
			return Load{}, volant.Invalidf("live load %q of node %s: %v", f.Key.ID, f.Node, err)
		}
	}
	l.App, l.Group, l.Slots, l.Accepting, l.Deaf = volant.AppID(id), group, nil, nil, nil
	return l, nil
}

// scanPort reads a port.
func scanPort(d *live.Scanner) uint16 {
	v := d.Uvarint()
	if v == 0 || v > 1<<16-1 {
		d.Fail()
	}
	return uint16(v) //nolint:gosec // checked
}

func malformed(f *live.Fact) error {
	return volant.Invalidf("live fact %d %q of node %s is malformed", f.Key.Kind, f.Key.ID, f.Node)
}
