package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/lost"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

const (
	// nodeTermPrefix begins the keys of terms that nodes hold as long as they live: their leases.
	nodeTermPrefix = "node/"
	// janitorTerm is the key of the term under which one control node decides which machines are lost.
	janitorTerm = "janitor"
	// seenPrefix begins the keys which say that a node's lease was there in this epoch of the cluster. They are no
	// records: a store that is restored does not have them.
	seenPrefix = "seen/"
	callHears  = "POST /hears"
)

// janitor knows since when the leases of nodes are gone and, on the control node that holds its term, decides which
// machines are lost with their hosts.
type janitor struct {
	p *Platform

	mu      sync.Mutex // guards the fields below
	gone    map[volant.NodeID]time.Time
	seen    map[volant.NodeID]bool
	answers map[volant.NodeID]lost.Answer
	waits   map[volant.MachineID]bool // told of
}

func newJanitor(p *Platform) *janitor {
	return &janitor{
		p: p, gone: map[volant.NodeID]time.Time{}, seen: map[volant.NodeID]bool{},
		answers: map[volant.NodeID]lost.Answer{}, waits: map[volant.MachineID]bool{},
	}
}

// lookEvery is how often leases are looked at.
const lookEvery = time.Second

// again is how long what failed has until it is tried again.
const janitorAgain = 2 * time.Second

// live holds this node's lease until ctx ends.
func (p *Platform) live(ctx context.Context) {
	for ctx.Err() == nil {
		term, err := p.terms.Hold(ctx, nodeTermPrefix+string(p.Node))
		if err == nil {
			p.tellSeen(ctx)
			select {
			case <-ctx.Done():
			case <-term.Lost():
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(janitorAgain):
		}
	}
}

// tellSeen puts on record that this node's lease was there in this epoch.
func (p *Platform) tellSeen(ctx context.Context) {
	_, err := p.Store.Commit(ctx, store.Op{Key: seenPrefix + string(p.Node), Value: []byte("1")})
	if err != nil && !errors.Is(err, volant.ErrExists) && ctx.Err() == nil {
		p.Log.Debug("the lease of this node is not on record", "err", err)
	}
}

// serveHears tells other nodes whom this one hears.
func (p *Platform) serveHears() {
	peer.Handle(p.peers, callHears, func(context.Context, volant.NodeID, struct{}) (any, error) {
		return p.known.hears(), nil
	})
}

// run decides while this node has the control role, until ctx ends.
func (j *janitor) run(ctx context.Context) {
	for ctx.Err() == nil {
		if j.p.isControl() {
			term, err := j.p.terms.Hold(ctx, janitorTerm)
			if err == nil {
				j.act(ctx, term)
				continue
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(janitorAgain):
		}
	}
}

// watch notes since when leases are gone, until ctx ends.
func (j *janitor) watch(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for id := range j.p.cat.Snapshot().Nodes() {
			owner, known := j.p.terms.Owner(nodeTermPrefix + string(id))
			j.mu.Lock()
			switch {
			case owner != "":
				j.seen[id] = true
				delete(j.gone, id)
			case !known:
				delete(j.gone, id)
			case j.gone[id].IsZero():
				j.gone[id] = time.Now()
			}
			j.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// act decides under a term until it is lost or given up.
func (j *janitor) act(ctx context.Context, term *store.Term) {
	defer appTerm{term}.Release()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for term.Valid() && j.p.isControl() {
		steps, _ := lost.Plan(j.observe(ctx))
		for _, s := range steps {
			if !term.Valid() {
				return
			}
			if err := j.apply(ctx, term, s); err != nil && ctx.Err() == nil {
				j.p.Log.Warn("step about a lost machine went wrong", "step", s.Kind, "machine", s.Machine.ID, "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-term.Lost():
			return
		case <-tick.C:
		}
	}
}

func (j *janitor) observe(ctx context.Context) lost.Observation {
	snap := j.p.cat.Snapshot()
	o := lost.Observation{Now: time.Now(), Self: j.p.Node, Answers: map[volant.NodeID]lost.Answer{}}
	for id, n := range snap.Nodes() {
		j.mu.Lock()
		ln := lost.Node{
			ID: id, Name: nodeName(n), Removed: n.Tombstone, Heard: id != j.p.Node && j.p.known.heard(id), Seen: j.seen[id], Gone: j.gone[id],
		}
		j.mu.Unlock()
		if !ln.Seen && !ln.Removed && !ln.Gone.IsZero() && !ln.Heard {
			ln.Seen = j.seenBefore(ctx, id)
		}
		o.Nodes = append(o.Nodes, ln)
		if !ln.Removed && (ln.Heard && ln.Gone.IsZero()) && !hasLost(snap.MachinesOn(id)) {
			continue
		}
		for m := range snap.MachinesOn(id) {
			if m.Tombstone {
				continue
			}
			lm := lost.Machine{
				ID: volant.MachineID(m.ID), Org: m.Org, App: m.App, Node: id, Managed: m.Managed(), Lost: !m.Lost.IsZero(),
				Ending: m.Run == volant.RunDestroyed,
			}
			if h, ok := snap.Have(lm.ID); ok {
				lm.Awake = h.State == volant.StateStarted || h.State == volant.StateStarting
				lm.Resting = h.State.Asleep() || h.State == volant.StateFailed
				lm.Draining, lm.Acted = h.Draining, h.Generation >= m.Generation
			}
			o.Machines = append(o.Machines, lm)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	maps.Copy(o.Answers, j.answers)
	return o
}

func hasLost(ms func(func(*volant.Machine) bool)) bool {
	for m := range ms {
		if !m.Tombstone && !m.Lost.IsZero() {
			return true
		}
	}
	return false
}

// seenBefore says whether a node's lease was there in this epoch before this server began to watch.
func (j *janitor) seenBefore(ctx context.Context, id volant.NodeID) bool {
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	_, err := j.p.Store.Get(ctx, seenPrefix+string(id))
	if err == nil {
		j.mu.Lock()
		j.seen[id] = true
		j.mu.Unlock()
	}
	return err == nil
}

func (j *janitor) apply(ctx context.Context, term *store.Term, s lost.Step) error {
	edit := func(fn func(*volant.Machine)) error {
		key := volant.RecordKey(volant.KindMachine, s.Machine.App, string(s.Machine.ID))
		rev, err := store.Apply(ctx, j.p.Store, janitorTerm, store.Edit(key, func(m *volant.Machine) error {
			fn(m)
			return nil
		}), store.Raw(term.Guard()))
		return j.p.fleet.wait(ctx, rev, err)
	}
	var err error
	switch s.Kind {
	case lost.Ask:
		j.ask(ctx, s.Nodes)
		return nil
	case lost.Wait:
		j.mu.Lock()
		told := j.waits[s.Machine.ID]
		j.waits[s.Machine.ID] = true
		j.mu.Unlock()
		if told {
			return nil
		}
	case lost.Lose:
		err = edit(func(m *volant.Machine) {
			m.Lost, m.Cordoned = time.Now().UTC(), true
			if m.Run == volant.RunOn {
				m.Run = volant.RunAuto // it is to rest once it is empty
			}
		})
	case lost.Drain:
		err = j.p.fleet.hosts.at(s.Machine.Node).Drain(ctx, s.Machine.ID, host.Drain{On: true, Then: "stop", By: janitorTerm})
		if errors.Is(err, volant.ErrPrecondition) {
			return nil // it fell asleep
		}
	case lost.Destroy:
		err = edit(func(m *volant.Machine) { m.Run = volant.RunDestroyed })
	case lost.Bury:
		if m, ok := j.p.cat.Snapshot().Machine(s.Machine.ID); ok {
			err = j.p.bury(ctx, m, true)
		}
	default:
		return fmt.Errorf("step %q is not known", s.Kind)
	}
	if err != nil {
		return err
	}
	j.p.Reasons.Add(why.Record{
		Time: time.Now(), Kind: why.Machine, Org: s.Machine.Org, App: s.Machine.App, Machine: s.Machine.ID, Rule: s.Rule, Text: s.Text,
		Attrs: map[string]string{"node": string(s.Machine.Node), "step": string(s.Kind)},
	})
	return nil
}

// ask asks nodes whom they hear, all at once.
func (j *janitor) ask(ctx context.Context, nodes []volant.NodeID) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for _, id := range nodes {
		wg.Go(func() {
			var hears []volant.NodeID
			if err := j.p.calls.Call(ctx, id, callHears, nil, &hears); err != nil {
				j.p.Log.Debug("a node does not say whom it hears", "node", id, "err", err)
				return
			}
			j.mu.Lock()
			j.answers[id] = lost.Answer{At: time.Now(), Hears: hears}
			j.mu.Unlock()
		})
	}
	wg.Wait()
}
