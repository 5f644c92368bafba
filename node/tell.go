package node

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

// teller is a proxy that tells other nodes facts of this one.
type teller interface {
	Tell(ctx context.Context, facts []live.Fact) error
	// TellAll is Tell, and there are no other facts of these kinds.
	TellAll(ctx context.Context, kinds live.Kinds, facts []live.Fact) error
}

// telling has this node's proxy tell other nodes what its server says of its machines and its room. A proxy that is
// new is told all of it.
type telling struct {
	self  volant.NodeID
	epoch uint64 // of this server
	link  func() (Link, error)
	room  func() room                 // this node's
	gone  func(volant.MachineID) bool // of machines that nobody needs to hear of any more
	log   *slog.Logger
	wake  chan struct{} // 1 deep: something is to be told
	moved chan struct{} // 1 deep: the room may have changed

	mu    sync.Mutex // guards the fields below
	all   map[live.Key]live.Fact
	dirty map[live.Key]bool
	links uint64 // proxies so far
	whole uint64 // the one that was told all there is
	seq   uint64 // of the room
	last  []byte // the room told last, without its time
}

func newTelling(
	self volant.NodeID, epoch uint64, link func() (Link, error), r func() room, gone func(volant.MachineID) bool, log *slog.Logger,
) *telling {
	return &telling{
		self: self, epoch: epoch, link: link, room: r, gone: gone, log: log, wake: make(chan struct{}, 1), moved: make(chan struct{}, 1),
		all: map[live.Key]live.Fact{}, dirty: map[live.Key]bool{},
	}
}

func ring(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is waiting already
	}
}

// have takes what became of a machine here.
func (t *telling) have(h volant.Have) {
	if h.State == volant.StateDestroyed && t.gone(h.Machine) {
		return
	}
	t.set(live.EncodeHave(h))
	ring(t.moved)
}

// forget ends the facts of machines that are gone for good.
func (t *telling) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, f := range t.all {
		if key.Kind != live.Have || f.Gone || !t.gone(volant.MachineID(key.ID)) {
			continue
		}
		f.Gone, f.Body = true, nil
		f.Version.Seq++
		t.all[key], t.dirty[key] = f, true
	}
	if len(t.dirty) > 0 {
		ring(t.wake)
	}
}

func (t *telling) set(f live.Fact) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := t.all[f.Key]; ok && !old.Version.Before(f.Version) {
		return
	}
	t.all[f.Key], t.dirty[f.Key] = f, true
	ring(t.wake)
}

// linked has a new proxy told all.
func (t *telling) linked() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, f := range t.all {
		if f.Gone { // nobody heard of it from this proxy
			delete(t.all, key)
			delete(t.dirty, key)
			continue
		}
		t.dirty[key] = true
	}
	t.last, t.links = nil, t.links+1
	ring(t.wake)
	ring(t.moved)
}

const (
	roomEvery   = 200 * time.Millisecond // how often the room is told at most
	roomAtLeast = 10 * time.Second       // and at least, with the time by this node's clock
	tellMost    = 256                    // facts at once
	tellWithin  = 5 * time.Second
	tellAgain   = time.Second
)

func (t *telling) run(ctx context.Context) error {
	again := time.NewTicker(roomAtLeast)
	defer again.Stop()
	var retry, due <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.wake:
		case <-retry:
		case <-t.moved:
			if due == nil {
				due = time.After(roomEvery)
			}
			continue
		case <-due:
			due = nil
			t.setRoom(false)
		case <-again.C:
			t.setRoom(true)
			t.forget()
		}
		retry = nil
		if err := t.tell(ctx); err != nil {
			t.log.Debug("other nodes are not told yet", "err", err)
			retry = time.After(tellAgain)
		}
	}
}

// setRoom takes the room as it is now, if it changed or always.
func (t *telling) setRoom(always bool) {
	r := t.room()
	plain, err := json.Marshal(r)
	t.mu.Lock()
	same := bytes.Equal(plain, t.last)
	if err != nil || same && !always {
		t.mu.Unlock()
		return
	}
	t.last = plain
	t.seq++
	v := live.Version{Epoch: t.epoch, Seq: t.seq}
	t.mu.Unlock()
	r.Clock = time.Now().UnixMilli()
	f, err := roomFact(t.self, v, r)
	if err != nil {
		t.log.Error("other nodes are not told of the room", "err", err)
		return
	}
	t.set(f)
}

// tell tells what is to be told. A link that cannot tell belongs to a node that is alone.
func (t *telling) tell(ctx context.Context) error {
	for {
		facts, all, link := t.next()
		if len(facts) == 0 && !all {
			return nil
		}
		l, err := t.link()
		if err != nil {
			return err
		}
		if to, ok := l.(teller); ok {
			bound, cancel := context.WithTimeout(ctx, tellWithin)
			if all {
				err = to.TellAll(bound, live.KindsOf(live.Have, live.Room), facts)
			} else {
				err = to.Tell(bound, facts)
			}
			cancel()
		}
		if err != nil {
			return err
		}
		t.told(facts, link)
	}
}

// next is what is to be told, and to which proxy: all there is, or some of what is new.
func (t *telling) next() (facts []live.Fact, all bool, link uint64) {
	t.mu.Lock()
	link, all = t.links, t.whole != t.links
	t.mu.Unlock()
	if all {
		t.setRoom(true) // it is one of all there is
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if all {
		return slices.Collect(maps.Values(t.all)), true, link
	}
	for key := range t.dirty {
		if facts = append(facts, t.all[key]); len(facts) == tellMost {
			break
		}
	}
	return facts, false, link
}

func (t *telling) told(facts []live.Fact, link uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.whole = link
	for _, f := range facts {
		if t.all[f.Key].Version == f.Version {
			delete(t.dirty, f.Key)
		}
		if f.Gone && t.all[f.Key].Gone {
			delete(t.all, f.Key)
		}
	}
}
