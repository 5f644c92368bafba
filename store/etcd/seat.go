package etcd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// SeatConfig configures a Seat.
type SeatConfig struct {
	// Member is of this node's own member, while it has one. Name and Dir are needed; without Listen the node
	// stands alone. Floor and Join are the Seat's to fill in.
	Member Config
	// Remote is how the members of other nodes are reached. Where it is External, this node never has a member.
	Remote RemoteConfig
	// Joined says that this node is not the first of its cluster: an empty directory is never made a store.
	Joined bool
	// Floor is the newest revision this node has seen; nil: none.
	Floor func() store.Revision
	Log   *slog.Logger // nil discards
}

// Wish says what the records of the nodes ask of the store's members. The zero Wish leaves all as it is.
type Wish struct {
	Member    bool            // this node is to have one
	Endpoints []string        // of the nodes that are to have one, without this node's
	Others    []string        // of all other nodes: asked when those do not answer, since one may have restored the store
	Gone      []volant.NodeID // nodes whose member is to be removed: they lost the role, or were thrown out
}

// Seat is a node's place in the store: a member of its own, or the members of others, as the node's role says. It
// changes from one to the other while it runs, and who uses it as a store.Store does not notice but
// for some volant.ErrUnavailable.
//
// All of it follows the records of nodes, which SetWish tells: a node that is to have a member adds itself as a
// learner and takes its seat when its member serves; the member that leads removes those that are to go.
type Seat struct {
	cfg  SeatConfig
	wish chan struct{} // capacity 1: there is another wish

	mu      sync.Mutex // guards the fields below
	asked   Wish
	own     *part[*Store]   // this node's member
	far     *part[*Remote]  // the members of others; nil when the own one serves
	last    *part[*Remote]  // served until the own one did, and ends the calls it has; closed later
	running context.Context // of Run; nil before and after

	// What Run alone uses.
	bad  int       // steps for which the own member was down
	deaf int       // steps for which those of others were
	left time.Time // when last was left
}

// part is a store and its Run.
type part[S interface{ Run(context.Context) error }] struct {
	store S
	stop  func() // ends its Run and waits for it; nil when it does not run
}

var (
	_ store.Store = (*Seat)(nil)
	_ Admin       = (*Seat)(nil)
)

const (
	seatEvery = 2 * time.Second
	// probeTime bounds how long a start waits to hear whether the store was restored elsewhere.
	probeTime = 2 * time.Second
)

// NewSeat returns a Seat that is down until Start.
func NewSeat(cfg SeatConfig) *Seat {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Floor == nil {
		cfg.Floor = func() store.Revision { return store.Revision{} }
	}
	return &Seat{cfg: cfg, wish: make(chan struct{}, 1)}
}

// Start opens this node's member if it has one, else reaches those of others. A Seat whose Start failed is down, and
// Run tries again.
func (s *Seat) Start(ctx context.Context) error {
	if s.cfg.Remote.External || !s.hasMember(ctx) {
		return s.away().Start(ctx)
	}
	err := s.home(nil).Start(ctx)
	if !errors.Is(err, volant.ErrPrecondition) || !s.elsewhere(ctx) {
		return err
	}
	if err := s.vacate("it is of before a restore"); err != nil {
		return err
	}
	return s.away().Start(ctx)
}

// hasMember says whether this node begins with a member of its own.
func (s *Seat) hasMember(ctx context.Context) bool {
	_, err := os.Stat(filepath.Join(s.cfg.Member.Dir, "member", "wal"))
	others := len(s.endpoints()) > 0
	switch {
	case err != nil && s.cfg.Joined:
		return false
	case err != nil: // the first of a cluster; where it is one of several and its directory is lost, others have it
		return s.cfg.Floor().IsZero() || !others
	case wasRemoved(s.cfg.Member.Dir) != nil && others:
		return s.vacate("it was removed") != nil
	case others && s.elsewhere(ctx):
		return s.vacate("it is of before a restore") != nil
	}
	return true
}

// elsewhere says whether the other nodes have a store which was restored since this node's: of a newer epoch.
func (s *Seat) elsewhere(ctx context.Context) bool {
	eps := s.endpoints()
	if len(eps) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cfg := s.cfg.Remote
	cfg.Endpoints, cfg.Log = eps, nil
	r := NewRemote(cfg)
	defer r.Close() //nolint:errcheck // it was only asked
	id, _, err := r.ask(ctx)
	if err != nil {
		return false
	}
	epoch := epochOf(s.cfg.Member.Dir)
	return epoch > 0 && id.epoch > epoch
}

// vacate sets the member's directory aside.
func (s *Seat) vacate(because string) error {
	s.leaveHome()
	aside, err := SetAside(s.cfg.Member.Dir)
	if err != nil {
		s.cfg.Log.Error("store's old member not set aside", "err", err)
		return err
	}
	s.cfg.Log.Warn("store's old member set aside", "because", because, "at", aside)
	return nil
}

// endpoints are those of the other members.
func (s *Seat) endpoints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.asked.Endpoints) > 0 {
		return s.asked.Endpoints
	}
	return s.cfg.Remote.Endpoints
}

// SetWish says what is asked of the members now. It may be called before Start.
func (s *Seat) SetWish(w Wish) {
	s.mu.Lock()
	s.asked = w
	far := s.far
	s.mu.Unlock()
	if far != nil && !s.cfg.Remote.External {
		far.store.SetEndpoints(w.Endpoints)
	}
	select {
	case s.wish <- struct{}{}:
	default:
	}
}

// home makes this node's member the store, or one that is to become it.
func (s *Seat) home(join *InitialCluster) *Store {
	cfg := s.cfg.Member
	cfg.Floor, cfg.Join = s.cfg.Floor(), join
	st := New(cfg)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own = &part[*Store]{store: st}
	return st
}

// away makes the members of others the store.
func (s *Seat) away() *Remote {
	cfg := s.cfg.Remote
	cfg.Floor = s.cfg.Floor()
	if !cfg.External {
		cfg.Endpoints = s.endpoints()
	}
	r := NewRemote(cfg)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.far = &part[*Remote]{store: r}
	s.far.begin(s.running)
	return r
}

// begin runs the part, if its Seat runs.
func (p *part[S]) begin(ctx context.Context) {
	if ctx == nil || p.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.store.Run(ctx) //nolint:errcheck // it returns nil
	}()
	p.stop = func() { cancel(); <-done }
}

func (p *part[S]) end() {
	if p.stop != nil {
		p.stop()
	}
}

// Run looks after the store, and follows the wishes, until ctx ends.
func (s *Seat) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	s.running = ctx
	if s.own != nil {
		s.own.begin(ctx)
	}
	if s.far != nil {
		s.far.begin(ctx)
	}
	s.mu.Unlock()
	defer func() {
		cancel()
		s.mu.Lock()
		own, far := s.own, s.far
		s.running = nil
		s.mu.Unlock()
		s.closeLast()
		if own != nil {
			own.end()
		}
		if far != nil {
			far.end()
		}
	}()
	tick := time.NewTicker(seatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.wish:
		}
		s.step(ctx)
	}
}

// step goes one step towards the wish.
func (s *Seat) step(ctx context.Context) {
	s.mu.Lock()
	own, far, wish := s.own, s.far, s.asked
	s.mu.Unlock()
	if own == nil || own.store.Down() == nil {
		s.bad = 0
	} else {
		s.bad++
	}
	if s.last != nil && time.Since(s.left) > callTime {
		s.closeLast()
	}
	reached := far != nil && far.store.Down() == nil
	if far == nil || reached {
		s.deaf = 0
	} else if s.deaf++; s.deaf == longPatience && !s.cfg.Remote.External {
		far.store.SetEndpoints(slices.Concat(s.endpoints(), wish.Others))
	}
	switch {
	case s.cfg.Remote.External:
	case own == nil && reached && wish.Member && !s.cfg.Member.Listen.IsZero():
		s.enter(ctx, far.store)
	case own == nil:
	case far == nil && s.bad >= patience && len(s.endpoints()) > 0: // others may serve meanwhile
		s.away()
	case far == nil && own.store.leads():
		s.weed(ctx, own.store, wish.Gone)
	case far == nil:
	case wasRemoved(s.cfg.Member.Dir) != nil:
		s.vacate("it was removed") //nolint:errcheck // logged, and tried again
	case s.bad == 0: // it serves now
		s.takeSeat(far)
	case reached && far.store.epoch() > epochOf(s.cfg.Member.Dir) && epochOf(s.cfg.Member.Dir) > 0:
		s.vacate("it is of before a restore") //nolint:errcheck // likewise
	case reached && s.bad >= longPatience && !started(s.cfg.Member.Dir): // its directory is gone for good
		s.leaveHome()
	}
}

const (
	patience     = 2  // steps until others are asked while the own member is down
	longPatience = 15 // steps until a directory that was taken away is taken for lost, or any node is asked for the store
)

// takeSeat makes the own member the store. Calls to the others that are under way may end.
func (s *Seat) takeSeat(far *part[*Remote]) {
	s.closeLast()
	s.mu.Lock()
	s.far, s.last, s.left = nil, far, time.Now()
	s.mu.Unlock()
	s.cfg.Log.Info("store's member here serves")
}

func (s *Seat) closeLast() {
	s.mu.Lock()
	last := s.last
	s.last = nil
	s.mu.Unlock()
	if last == nil {
		return
	}
	last.end()
	if err := last.store.Close(); err != nil {
		s.cfg.Log.Warn("store's connections not closed", "err", err)
	}
}

// enter adds this node as a member and starts it. Where it had one before, its directory is lost.
func (s *Seat) enter(ctx context.Context, far *Remote) {
	ctx, cancel := context.WithTimeout(ctx, 2*settleTime)
	defer cancel()
	node := volant.NodeID(s.cfg.Member.Name)
	in, err := far.AddMember(ctx, node, s.cfg.Member.Listen)
	if errors.Is(err, volant.ErrExists) {
		s.cfg.Log.Warn("store's member here is lost and replaced", "dir", s.cfg.Member.Dir)
		in, err = far.ReplaceMember(ctx, node, s.cfg.Member.Listen)
	}
	if err == nil {
		err = s.home(&in).Start(ctx)
		if err != nil && !started(s.cfg.Member.Dir) { // it has nothing to go on from
			s.leaveHome()
		}
		s.mu.Lock()
		if s.own != nil {
			s.own.begin(s.running)
		}
		s.mu.Unlock()
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("store has no member here yet", "err", err)
	}
}

func started(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member", "wal"))
	return err == nil
}

// leaveHome closes this node's member.
func (s *Seat) leaveHome() {
	s.mu.Lock()
	own := s.own
	s.own = nil
	s.mu.Unlock()
	if own == nil {
		return
	}
	own.end()
	if err := own.store.Close(); err != nil {
		s.cfg.Log.Warn("store's member not closed cleanly", "err", err)
	}
}

// weed removes the members of nodes which are to have none, this node's own last.
func (s *Seat) weed(ctx context.Context, own *Store, gone []volant.NodeID) {
	if len(gone) == 0 {
		return
	}
	list, err := own.admin.list(ctx)
	if err != nil {
		return // it is tried again
	}
	self := volant.NodeID(s.cfg.Member.Name)
	gone = slices.Clone(gone)
	slices.SortStableFunc(gone, func(a, b volant.NodeID) int {
		switch {
		case a == b:
			return 0
		case a == self:
			return 1
		case b == self:
			return -1
		}
		return 0
	})
	for _, node := range gone {
		m := memberOf(list, node)
		if m == nil {
			continue
		}
		err := own.RemoveMember(ctx, node)
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("store's member not removed", "node", node, "err", err)
			continue
		}
		s.cfg.Log.Info("store's member removed", "node", node)
		return // one at a time
	}
}

// Close ends all of it.
func (s *Seat) Close() error {
	s.mu.Lock()
	own, far := s.own, s.far
	s.own, s.far = nil, nil
	s.mu.Unlock()
	s.closeLast()
	var errs []error
	if own != nil {
		own.end()
		errs = append(errs, own.store.Close())
	}
	if far != nil {
		far.end()
		errs = append(errs, far.store.Close())
	}
	return errors.Join(errs...)
}

// both is what a Store and a Remote have in common.
type both interface {
	store.Store
	Admin
	Down() error
	Seed(ctx context.Context, epoch uint64, entries []store.Entry) (store.Revision, error)
}

// now is who answers.
func (s *Seat) now() both {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.far != nil && s.own != nil && s.own.store.Down() == nil && s.far.store.Down() != nil:
		return s.own.store
	case s.far != nil:
		return s.far.store
	case s.own != nil:
		return s.own.store
	}
	return New(s.cfg.Member) // down
}

// Own says whether this node has a member which serves.
func (s *Seat) Own() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own != nil && s.far == nil
}

// Down says why the store is down, or nil.
func (s *Seat) Down() error { return s.now().Down() }
