package live

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
)

const (
	coalesce    = 50 * time.Millisecond // after a change went out, the next wait as long, for company
	grid        = 50 * time.Millisecond // what is not urgent is done together
	beatEvery   = time.Second           // a datagram at least so often to every peer
	silentAfter = 6 * time.Second
	digestEvery = 2 * time.Second
	goneKept    = time.Minute // how long it is remembered that a fact is no more
	sweepEvery  = time.Second
	lateMost    = time.Second // the sender is later only if nothing ran

	factsMost = 1 << 16 // of one node
	kindsMost = 8
)

// Config configures a Feed.
type Config struct {
	Node  volant.NodeID
	Epoch uint64 // boot epoch of this proxy, greater with every start; at least 1
	Log   *slog.Logger
}

// Peer is another node to talk to.
type Peer struct {
	Node volant.NodeID
	Addr netip.AddrPort // of its Feed; nothing is taken from it that comes from elsewhere
	Want Kinds          // what to hear of it
}

// Events are what a Feed tells, one call at a time. A nil func is not called. Who is slow hears the newest
// versions only.
type Events struct {
	Fact func(Fact)
	// Peer is told when a peer is heard for the first time, in a newer epoch, after silence and no more, and when
	// its distance has changed by an eighth.
	Peer func(PeerState)
}

// Feed tells other nodes its facts and hears theirs. See the package comment.
type Feed struct {
	cfg   Config
	log   *slog.Logger
	begun time.Time // of the clock in datagrams
	bell  chan struct{}
	news  news

	mu     sync.Mutex // guards what follows
	facts  []*own     // its own, by index; nil where an index is free
	free   []int32
	index  map[Key]int32
	sums   [kindsMost]sum // of those that are not gone, by kind
	counts [kindsMost]int
	whole  Kinds     // SetAll said all there is of them
	rev    uint64    // of the newest change
	flush  time.Time // when changes go out next, or went last
	wakes  time.Time // when the sender looks again by itself
	// excused is when it did so last much too late: this node had stopped, or Run had ended.
	excused time.Time
	swept   time.Time
	peers   map[volant.NodeID]*peer
	order   []*peer
	byAddr  map[netip.AddrPort]*peer
	loss    uint8 // mean of the peers': a way may lose what others do, before it has
	num     Numbers
	in      datagram
	out     outbox
}

// own is a fact of this node.
type own struct {
	Fact
	born uint64 // the first revision
	rev  uint64
	gone time.Time
}

// New returns a Feed, which talks once it runs.
func New(cfg Config) *Feed {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Epoch = max(cfg.Epoch, 1)
	f := &Feed{
		cfg: cfg, log: cfg.Log, begun: time.Now(), bell: make(chan struct{}, 1), index: map[Key]int32{},
		peers: map[volant.NodeID]*peer{}, byAddr: map[netip.AddrPort]*peer{},
	}
	f.news.init()
	return f
}

// Run talks over conn until ctx ends. It may run again afterwards, over another conn; it does not close conn.
func (f *Feed) Run(ctx context.Context, conn net.PacketConn, ev Events) error {
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("live: %w", err)
	}
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })() //nolint:errcheck // a conn that cannot is closed
	wire := wireOf(conn)
	parts.Go(func() { f.news.run(ctx, ev) })
	parts.Go(func() { f.talk(ctx, wire) })
	return f.listen(ctx, wire)
}

// SetPeers makes ps all the peers there are. Facts of those that are no more are gone, and those of kinds that are
// not wanted any more.
func (f *Feed) SetPeers(ps []Peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	clear(f.byAddr)
	listed := map[volant.NodeID]bool{}
	for _, cfg := range ps {
		cfg.Addr = unmapped(cfg.Addr)
		if cfg.Node == f.cfg.Node || listed[cfg.Node] || !cfg.Addr.IsValid() {
			continue
		}
		listed[cfg.Node] = true
		p := f.peers[cfg.Node]
		if p == nil {
			p = newPeer(cfg, now)
			f.peers[cfg.Node] = p
		}
		if p.Want != cfg.Want {
			f.forget(p, func(k Kind) bool { return !cfg.Want.Has(k) })
		}
		if p.Want != cfg.Want || p.Addr != cfg.Addr {
			p.next = time.Time{}
			p.sentAt = time.Time{}
		}
		p.Peer = cfg
		f.byAddr[cfg.Addr] = p
	}
	for id, p := range f.peers {
		if !listed[id] {
			f.forget(p, func(Kind) bool { return true })
			f.news.drop(id)
			delete(f.peers, id)
		}
	}
	f.order = slices.SortedFunc(maps.Values(f.peers), func(a, b *peer) int { return cmp.Compare(a.Node, b.Node) })
	f.ring()
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// Set makes facts the newest of this node. One without a Version gets the next one, unless it says nothing new; of
// one with a Version that is not newer than what is known nothing is taken. Node needs not be set. Facts out of
// bounds are left out, and the error is of volant.ErrInvalid.
func (f *Feed) Set(facts ...Fact) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.set(facts, nil)
}

// SetAll is Set, and says besides that there are no other facts of these kinds: the rest of them is gone. Only what
// SetAll has said once does a reader take for complete, so that it forgets what an earlier epoch told.
func (f *Feed) SetAll(kinds Kinds, facts ...Fact) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	listed := make(map[Key]bool, len(facts))
	for i := range facts {
		listed[facts[i].Key] = !facts[i].Gone
	}
	err := f.set(facts, func(k Key) bool { return kinds.Has(k.Kind) && !listed[k] })
	if f.whole|kinds != f.whole {
		f.whole |= kinds
		for _, p := range f.order {
			p.next = time.Time{}
			f.due(p)
		}
	}
	return err
}

// set takes facts, and makes those of the known ones gone that drop names; f.mu is held.
func (f *Feed) set(facts []Fact, drop func(Key) bool) error {
	now := time.Now()
	var err error
	changed := false
	for i := range facts {
		did, e := f.setOne(&facts[i], now)
		changed = changed || did
		err = errors.Join(err, e)
	}
	if drop != nil {
		for _, o := range f.facts {
			if o != nil && !o.Gone && drop(o.Key) {
				gone := Fact{Key: o.Key, Version: o.Version, Gone: true}
				did, e := f.setOne(&gone, now)
				changed = changed || did
				err = errors.Join(err, e)
			}
		}
	}
	if changed {
		for _, p := range f.order {
			f.due(p)
		}
	}
	return err
}

func (f *Feed) setOne(in *Fact, now time.Time) (changed bool, err error) {
	fact := Fact{Node: f.cfg.Node, Key: in.Key, Version: in.Version, Gone: in.Gone}
	if !fact.Gone {
		fact.Body = in.Body
	}
	i, known := f.index[fact.Key]
	var was *own
	if known {
		was = f.facts[i]
	}
	if fact.Version == (Version{}) {
		if was != nil && was.Gone == fact.Gone && bytes.Equal(was.Body, fact.Body) || was == nil && fact.Gone {
			return false, nil
		}
		fact.Version = Version{f.cfg.Epoch, f.rev + 1}
		if was != nil && fact.Version.Before(was.Version) {
			fact.Version = Version{was.Version.Epoch, was.Version.Seq + 1}
		}
	}
	switch {
	case was == nil && fact.Gone, was != nil && !newer(fact.Version, fact.Gone, was.Version, was.Gone):
		return false, nil
	case fact.Key.Kind == 0 || fact.Key.Kind >= kindsMost || fact.Key.ID == "" || len(fact.Key.ID) > MaxID ||
		len(fact.Body) > MaxBody || factSize(&fact) > factMost:
		return false, volant.Invalidf("live fact %d of %q: %d bytes, at most %d", fact.Key.Kind, fact.Key.ID, len(fact.Body), MaxBody)
	case was == nil && len(f.index) >= factsMost:
		return false, volant.Invalidf("live fact %d of %q: there are %d already", fact.Key.Kind, fact.Key.ID, len(f.index))
	}
	fact.Body = bytes.Clone(fact.Body)
	f.put(i, was, fact, now, f.flushBy(now))
	return true, nil
}

// newer says whether a version is newer than another, where a fact's end is newer than the fact.
func newer(v Version, gone bool, than Version, thanGone bool) bool {
	return than.Before(v) || than == v && gone && !thanGone
}

// flushBy is when a change of now goes out: at once if none did so of late, else with those that follow.
func (f *Feed) flushBy(now time.Time) time.Time {
	if since := now.Sub(f.flush); since > 0 {
		if since < coalesce {
			f.flush = f.flush.Add(coalesce)
		} else {
			f.flush = now
		}
	}
	return f.flush
}

// put stores a fact and gives it to the subscribers.
func (f *Feed) put(i int32, was *own, fact Fact, now, at time.Time) {
	k := fact.Key.Kind
	f.rev++
	o := &own{Fact: fact, rev: f.rev, born: f.rev}
	if was == nil {
		if n := len(f.free); n > 0 {
			i, f.free = f.free[n-1], f.free[:n-1]
		} else {
			i = int32(len(f.facts)) //nolint:gosec // factsMost
			f.facts = append(f.facts, nil)
		}
		f.index[fact.Key] = i
	} else {
		o.born = was.born
	}
	if was != nil && !was.Gone {
		f.sums[k].add(sumOf(was.Key, was.Version))
		f.counts[k]--
	}
	if fact.Gone {
		o.gone = now
	} else {
		f.sums[k].add(sumOf(fact.Key, fact.Version))
		f.counts[k]++
	}
	f.facts[i] = o
	for _, p := range f.order {
		if p.told.wants.Has(k) {
			p.told.changed(i, k, now)
			p.told.sendBy(at)
			p.soon(at)
		}
	}
}

// Peers are the states of all peers.
func (f *Feed) Peers() []PeerState {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]PeerState, len(f.order))
	for i, p := range f.order {
		out[i] = p.state()
	}
	return out
}

// Facts are what is known of others, of some kinds; of all kinds where none is named.
func (f *Feed) Facts(kinds ...Kind) []Fact {
	set := KindsOf(kinds...)
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Fact
	for _, p := range f.order {
		for _, k := range p.heardFacts.known {
			if !k.Gone && (len(kinds) == 0 || set.Has(k.Key.Kind)) {
				out = append(out, k.Fact)
			}
		}
	}
	return out
}

// Readers is how many peers subscribe to a kind of this node's facts and are heard.
func (f *Feed) Readers(k Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, p := range f.order {
		if p.told.wants.Has(k) && !p.silent() {
			n++
		}
	}
	return n
}

func (f *Feed) ring() {
	select {
	case f.bell <- struct{}{}:
	default:
	}
}

// clock is the time in datagrams: never 0.
func (f *Feed) clock(now time.Time) uint32 {
	return max(uint32(now.Sub(f.begun).Microseconds()+1), 1) //nolint:gosec // it wraps
}

// Numbers are what a Feed did since it began, and what it has now.
type Numbers struct {
	Peers     int           `json:"peers"`
	Silent    int           `json:"silent"`      // of the peers
	Facts     int           `json:"facts"`       // of others, known now
	Own       int           `json:"own"`         // of this node
	Behind    int           `json:"behind"`      // own facts, each counted per subscriber who has not acknowledged it
	Lag       time.Duration `json:"lag_ns"`      // how long the oldest of them waits
	Sent      uint64        `json:"sent"`        // datagrams
	SentBytes uint64        `json:"sent_bytes"`  // without the headers of UDP and IP
	Received  uint64        `json:"received"`    // datagrams
	RecvBytes uint64        `json:"recv_bytes"`  // the same
	Repeated  uint64        `json:"repeated"`    // datagrams that came twice, or much too late
	Refused   uint64        `json:"refused"`     // datagrams of strangers, of older epochs and malformed ones
	Resent    uint64        `json:"resent"`      // facts that were sent again
	Fulls     uint64        `json:"fulls"`       // times that a subscriber was sent everything
	Mismatch  uint64        `json:"mismatches"`  // digests of others that differed
	SendFails uint64        `json:"send_errors"` // datagrams that the system did not take
}

// Numbers are those of now.
func (f *Feed) Numbers() Numbers {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.num
	n.Peers = len(f.order)
	for _, c := range f.counts {
		n.Own += c
	}
	now := time.Now()
	for _, p := range f.order {
		if p.silent() {
			n.Silent++
		}
		n.Facts += p.heardFacts.alive
		if p.told.behind > 0 && !p.silent() {
			n.Behind += p.told.behind
			n.Lag = max(n.Lag, now.Sub(p.told.since))
		}
	}
	return n
}
