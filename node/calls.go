package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
)

// hostCalls is what a host is asked for, whichever node it is on. Errors keep their kinds on the way; a host that
// does not answer is volant.ErrUnavailable.
type hostCalls interface {
	Reserve(ctx context.Context, r host.Reservation) error
	WakeFor(ctx context.Context, id volant.MachineID, source, reason string) error
	Sleep(ctx context.Context, id volant.MachineID, s host.Sleep) error
	Drain(ctx context.Context, id volant.MachineID, d host.Drain) error
	Restart(ctx context.Context, id volant.MachineID, r host.Restart) error
	Signal(ctx context.Context, id volant.MachineID, sig int) error
	Exec(ctx context.Context, id volant.MachineID, e guest.Exec) (guest.Exit, error)
	Stats(ctx context.Context, id volant.MachineID) (guest.Stats, error)
	Processes(ctx context.Context, id volant.MachineID) ([]guest.Process, error)
	Logs(ctx context.Context, id volant.MachineID, tail int, follow bool, fn func(host.LogLine) error) error
	OldLogs(ctx context.Context, app volant.AppID) ([]volant.MachineID, error)
	Events(ctx context.Context, id volant.MachineID, limit int) ([]volant.Event, error)
}

// localHost is this node's own host.
type localHost struct{ *host.Host }

func (h localHost) OldLogs(_ context.Context, app volant.AppID) ([]volant.MachineID, error) {
	return h.Host.OldLogs(app), nil
}

func (h localHost) Events(_ context.Context, id volant.MachineID, limit int) ([]volant.Event, error) {
	return h.Host.Events(id, limit), nil
}

// hosts leads calls to the host of a machine.
type hosts struct {
	self  volant.NodeID
	local hostCalls
	calls caller // nil: this node is alone
	cat   *catalog.Catalog
	known *known

	mu     sync.Mutex // guards events
	events map[volant.MachineID]pastEvents
}

// pastEvents is the history of a machine of another node, as it was when the machine was what it is.
type pastEvents struct {
	epoch, seq uint64
	limit      int
	events     []volant.Event
}

// at is the host of a node.
func (h *hosts) at(node volant.NodeID) hostCalls {
	if node == h.self || node == "" || h.calls == nil {
		return h.local
	}
	return remoteHost{node: node, calls: h.calls, gone: h.gone}
}

// of is the host of a machine. One that the intent does not know may be an orphan here.
func (h *hosts) of(id volant.MachineID) hostCalls {
	if m, ok := h.cat.Snapshot().Machine(id); ok {
		return h.at(m.Node)
	}
	return h.local
}

// gone says why a node need not be called, or nil: it was removed, or has not been heard for long.
func (h *hosts) gone(node volant.NodeID) error {
	n, ok := h.cat.Snapshot().Node(node)
	switch {
	case ok && n.Tombstone:
		return volant.Errorf(volant.ErrUnavailable, "node %s was removed from the cluster", nodeName(n)).
			WithRemedy("its machines are gone with it")
	case h.known.silent(node):
		name := string(node)
		if ok {
			name = nodeName(n)
		}
		return volant.Errorf(volant.ErrUnavailable, "node %s is not heard", name).
			WithRemedy("see `volant nodes list`; machines there may serve on, and are replaced when it is gone for good")
	}
	return nil
}

// nodeName is a node for people: its name, and its ID where that says more.
func nodeName(n *volant.Node) string {
	if n.Name == "" || n.Name == n.ID {
		return n.ID
	}
	return fmt.Sprintf("%s (%s)", n.Name, n.ID)
}

// eventsWithin bounds how long the history of a machine elsewhere is waited for.
const eventsWithin = 2 * time.Second

// history is the events of a machine, the newest first; none where they cannot be had. What a host elsewhere told is
// kept until the machine changes.
func (h *hosts) history(id volant.MachineID, limit int) []volant.Event {
	ctx, cancel := context.WithTimeout(context.Background(), eventsWithin)
	defer cancel()
	at := h.of(id)
	if at == h.local {
		events, err := at.Events(ctx, id, limit)
		if err != nil {
			return nil
		}
		return events
	}
	have, _ := h.cat.Snapshot().Have(id)
	h.mu.Lock()
	past, ok := h.events[id]
	h.mu.Unlock()
	if ok && past.epoch == have.Epoch && past.seq == have.Seq && past.limit >= limit {
		return past.events[:min(limit, len(past.events))]
	}
	events, err := at.Events(ctx, id, max(limit, past.limit))
	if err != nil {
		return past.events[:min(limit, len(past.events))]
	}
	h.keep(id, pastEvents{epoch: have.Epoch, seq: have.Seq, limit: max(limit, past.limit), events: events})
	return events[:min(limit, len(events))]
}

// mostPast bounds the histories that are kept.
const mostPast = 4096

func (h *hosts) keep(id volant.MachineID, p pastEvents) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.events == nil || len(h.events) >= mostPast {
		h.events = map[volant.MachineID]pastEvents{}
	}
	h.events[id] = p
}

// hostNodes are the nodes with a host that are heard, this one first.
func (h *hosts) hostNodes() []volant.NodeID {
	out := []volant.NodeID{h.self}
	if h.calls == nil {
		return out
	}
	for id, n := range h.cat.Snapshot().Nodes() {
		if id != h.self && !n.Tombstone && n.Has(volant.RoleHost) && !h.known.silent(id) {
			out = append(out, id)
		}
	}
	return out
}

// oldLogs are the destroyed machines of an app whose logs some host keeps.
func (h *hosts) oldLogs(app volant.AppID) []volant.MachineID {
	ctx, cancel := context.WithTimeout(context.Background(), eventsWithin)
	defer cancel()
	nodes := h.hostNodes()
	found := make([][]volant.MachineID, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			if ids, err := h.at(n).OldLogs(ctx, app); err == nil { // what others keep is worth having alone
				found[i] = ids
			}
		})
	}
	wg.Wait()
	var out []volant.MachineID
	for _, ids := range found {
		out = append(out, ids...)
	}
	return out
}

// wake wakes a machine whose wish has just been written: its host may get that a moment later.
func (h *hosts) wake(ctx context.Context, node volant.NodeID, id volant.MachineID, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, wakeNewWithin)
	defer cancel()
	pause := 2 * time.Millisecond
	for {
		err := h.at(node).WakeFor(ctx, id, volant.SourceHost, reason)
		if !errors.Is(err, volant.ErrNotFound) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(pause):
		}
		if node != h.self {
			pause = min(2*pause, 100*time.Millisecond)
		}
	}
}

// wakeNewWithin bounds how long a host may take to learn of a machine that was created there.
const wakeNewWithin = 15 * time.Second
