package etcd

import (
	"context"
	"errors"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

const (
	lookEvery    = time.Second
	tidyEvery    = time.Minute
	longestPause = 30 * time.Second
)

// Run looks after the member until ctx ends: it closes one that broke and opens its directory again, as often
// as needed, and makes room in one that is full. A Store works without it, until it breaks.
func (s *Store) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	started, tidied, pause := time.Now(), time.Now(), lookEvery
	proved := false
	for {
		m, err := s.running()
		var broken <-chan struct{}
		if err == nil {
			broken = m.broken
		}
		select {
		case <-ctx.Done():
			return nil
		case <-broken:
		case <-tick.C:
		}
		switch {
		case err != nil && s.pending() != nil:
			if s.wait(ctx) {
				started, proved, pause = time.Now(), false, lookEvery
			}
		case err != nil:
			if s.reopen(ctx, pause) {
				started, proved, pause = time.Now(), false, lookEvery
			} else {
				pause = min(2*pause, longestPause)
			}
		case m.err() != nil:
			s.takeDown(m)
		default:
			if err := m.gone(); err != nil {
				m.fail(err)
				continue
			}
			s.lookAtDisk()
			if !proved && time.Since(started) > proven {
				proved = true
				if err := prove(s.cfg.Dir); err != nil {
					s.cfg.Log.Warn("store's start not marked as good", "err", err)
				}
			}
			s.grow(ctx, m)
			if time.Since(tidied) > tidyEvery {
				tidied = time.Now()
				s.tidy(ctx, m)
			}
		}
	}
}

// pending returns the member which waits for others, or nil.
func (s *Store) pending() *member {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.waiting
}

// wait takes the waiting member into service when it has become ready.
func (s *Store) wait(ctx context.Context) bool {
	m := s.pending()
	if m == nil {
		return false
	}
	err := m.ready(ctx, lookEvery)
	switch {
	case errors.Is(err, errWaiting), ctx.Err() != nil:
		return false
	case err == nil:
		err = s.settle(ctx, m)
	default:
		s.mu.Lock()
		s.waiting = nil
		s.mu.Unlock()
		err = m.undo(ctx, s.cfg.Dir, err)
	}
	if err != nil {
		s.failed(ctx, err)
		return false
	}
	s.cfg.Log.Info("store has a majority of its members")
	return true
}

// failed notes why there is no member.
func (s *Store) failed(ctx context.Context, err error) {
	s.mu.Lock()
	again := s.down != nil && s.down.Error() == err.Error()
	s.down, s.stuck = err, errors.Is(err, errHeld)
	s.mu.Unlock()
	if !again && ctx.Err() == nil {
		s.cfg.Log.Error("store not opened again", "err", err)
	}
}

// grow gives this member a vote when it has caught up, and says when the number of members is a bad one.
func (s *Store) grow(ctx context.Context, m *member) {
	own := m.srv.Cluster().Member(m.srv.MemberID())
	if own != nil && own.IsLearner {
		ctx, cancel := context.WithTimeout(ctx, callTime)
		defer cancel()
		err := s.Promote(ctx, volant.NodeID(s.cfg.Name))
		switch {
		case err == nil:
			s.cfg.Log.Info("store's member has a vote now")
		case ctx.Err() == nil && !errors.Is(err, volant.ErrPrecondition): // it has not caught up
			s.cfg.Log.Warn("store's member has no vote yet", "err", err)
		}
	}
	voters := 0
	for _, other := range m.srv.Cluster().Members() {
		if !other.IsLearner {
			voters++
		}
	}
	if s.voters.Swap(int64(voters)) != int64(voters) && voters%2 == 0 {
		s.cfg.Log.Warn("store has an even number of members", "members", voters, "may_fail", Tolerates(voters),
			"advice", "add or remove one: one fewer may fail as many")
	}
}

// Tolerates is how many of a number of members may fail at once, and the store works on.
func Tolerates(members int) int { return max(0, (members-1)/2) }

// takeDown closes a member which broke.
func (s *Store) takeDown(m *member) {
	s.cfg.Log.Error("store broke", "err", m.err())
	s.mu.Lock()
	if s.member == m {
		s.member, s.down = nil, m.err()
	}
	s.mu.Unlock()
	if !m.close() {
		s.mu.Lock()
		s.stuck = true
		s.mu.Unlock()
		s.cfg.Log.Error("store did not close; restart volant server, which ends no connection and no machine", "err", m.err())
	}
}

// reopen waits a while and tries to open the directory again.
func (s *Store) reopen(ctx context.Context, pause time.Duration) bool {
	s.mu.Lock()
	stop := s.stuck || s.closed
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
	}
	if stop {
		return false
	}
	if err := s.open(ctx); err != nil {
		s.failed(ctx, err)
		return false
	}
	s.cfg.Log.Info("store opened again")
	return true
}

// lookAtDisk stops writes while there is still room for what etcd itself has to write: running out ends
// a member in a way that only a new process mends.
func (s *Store) lookAtDisk() {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.cfg.Dir, &st); err != nil {
		return // gone tells
	}
	free := int64(st.Bavail) * st.Bsize
	low := free < s.cfg.Reserve
	if s.low.Swap(low) != low {
		s.cfg.Log.Warn("store's disk looked at", "writes", !low, "free", free, "reserve", s.cfg.Reserve)
	}
}

func (s *Store) lowNow() error {
	if !s.low.Load() {
		return nil
	}
	return volant.Errorf(volant.ErrUnavailable, "the disk of the store is nearly full").
		WithRemedy("free at least %d MiB on the disk of %s", s.cfg.Reserve>>20, s.cfg.Dir)
}

// tidy makes room in a store which is full, or nearly, so that it takes writes again by itself.
func (s *Store) tidy(ctx context.Context, m *member) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := m.call(ctx, func(c *clientv3.Client) error {
		st, err := c.Status(ctx, memberURL)
		if err != nil {
			return err
		}
		alarms, err := c.AlarmList(ctx)
		if err != nil || len(alarms.Alarms) == 0 && st.DbSize < s.cfg.Quota*8/10 {
			return err
		}
		s.cfg.Log.Warn("store is full, or nearly", "bytes", st.DbSize, "in_use", st.DbSizeInUse, "quota", s.cfg.Quota)
		_, err = c.Compact(ctx, st.Header.Revision, clientv3.WithCompactPhysical())
		if err = inWords(err); err != nil && !errors.Is(err, store.ErrCompacted) { // compacted already is as good
			return err
		}
		if err := m.srv.Backend().Defrag(); err != nil { // the client's Defragment wants a gRPC server beside it
			return err
		}
		if st, err = c.Status(ctx, memberURL); err != nil || len(alarms.Alarms) == 0 || st.DbSize > s.cfg.Quota*9/10 {
			return err
		}
		_, err = c.AlarmDisarm(ctx, &clientv3.AlarmMember{MemberID: uint64(m.srv.MemberID()), Alarm: pb.AlarmType_NOSPACE})
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		s.cfg.Log.Warn("store not tidied", "err", err)
	}
}
