package node

import (
	"maps"
	"slices"
	"sync"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/proxy"
)

// traffic keeps what the proxy last said of each app.
type traffic struct {
	mu    sync.Mutex                             // guards loads
	loads map[volant.AppID]map[string]proxy.Load // by the group
}

// set takes a Load and returns the machines which held slots before and hold none or another number now.
func (t *traffic) set(l proxy.Load) (changed map[volant.MachineID]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loads == nil {
		t.loads = map[volant.AppID]map[string]proxy.Load{}
	}
	if t.loads[l.App] == nil {
		t.loads[l.App] = map[string]proxy.Load{}
	}
	changed = map[volant.MachineID]int{}
	for id := range t.loads[l.App][l.Group].Slots {
		changed[id] = 0
	}
	maps.Copy(changed, l.Slots)
	t.loads[l.App][l.Group] = l
	return changed
}

// forget drops everything, since the proxy that said it is gone, and returns the machines which held slots.
func (t *traffic) forget() (held []volant.MachineID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, groups := range t.loads {
		for _, l := range groups {
			held = slices.AppendSeq(held, maps.Keys(l.Slots))
		}
	}
	t.loads = nil
	return held
}

// empty says whether no machine of the app holds a slot.
func (t *traffic) empty(app volant.AppID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.loads[app] {
		if len(l.Slots) > 0 {
			return false
		}
	}
	return true
}

// avoided adds the hosts that connections which wait here do not reach.
func (t *traffic) avoided(to map[volant.NodeID]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, groups := range t.loads {
		for _, l := range groups {
			if len(l.Waiting) == 0 {
				continue
			}
			for _, host := range l.Avoid {
				to[host] = true
			}
		}
	}
}

// drop forgets an app that is gone.
func (t *traffic) drop(app volant.AppID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.loads, app)
}

// Slots are the slots that an app's machines hold.
func (t *traffic) Slots(app volant.AppID) map[volant.MachineID]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[volant.MachineID]int{}
	for _, l := range t.loads[app] {
		maps.Copy(out, l.Slots)
	}
	return out
}

// Waiting is the number of an app's connections that wait for a slot.
func (t *traffic) Waiting(app volant.AppID) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for _, l := range t.loads[app] {
		for _, w := range l.Waiting {
			n += w
		}
	}
	return n
}

// flows is what the proxies of all nodes last said of each app, as the API asks for it.
type flows struct {
	own   *traffic
	known *known
	cat   *catalog.Catalog
}

// Slots is control's.
func (f flows) Slots(app volant.AppID) map[volant.MachineID]int {
	out := f.known.slotsOf(app, f.cat.Snapshot().Machines(app))
	maps.Copy(out, f.own.Slots(app))
	return out
}

// Waiting is control's.
func (f flows) Waiting(app volant.AppID) int { return f.own.Waiting(app) + f.known.waiting(app) }
