package control

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/store"
)

// headerNonce carries the nonce of the caller's lease.
const headerNonce = "fly-machine-lease-nonce"

// Bounds of a lease, in seconds.
const (
	defaultLease = 30
	longestLease = 24 * 3600
)

// holds says whether the caller's nonce is the lease's.
func (c *call) holds(l *volant.Lease) bool {
	return subtle.ConstantTimeCompare([]byte(c.r.Header.Get(headerNonce)), []byte(l.Nonce)) == 1
}

// admits says why a lease does not let the caller change its machine, or nil. l is nil where there is none.
func (c *call) admits(id string, l *volant.Lease, now time.Time) error {
	switch held := l.Live(now); {
	case held && !c.holds(l):
		return leasedError(l)
	case !held && c.r.Header.Get(headerNonce) != "":
		return volant.Errorf(volant.ErrConflict, "the lease on machine %s that the nonce is of has ended", id).
			WithRemedy("look at the machine again, and take a new lease; without the header %s no lease is needed", headerNonce)
	}
	return nil
}

func leasedError(l *volant.Lease) error {
	text := ""
	if l.Description != "" {
		text = " (" + l.Description + ")"
	}
	return volant.Errorf(volant.ErrLeased, "machine %s: lease currently held by %s%s until %s", l.ID, l.Owner, text, l.Expires.UTC().Format(time.RFC3339)).
		WithRemedy("wait until then, or send the holder's nonce in the header %s", headerNonce)
}

// unleased is admits by what this node knows, for calls to a host.
func (s *Server) unleased(c *call, m *volant.Machine) error {
	l, _ := s.Catalog.Snapshot().Lease(volant.MachineID(m.ID))
	return c.admits(m.ID, l, time.Now())
}

// underLease is the Change which writes nothing, and fails unless the machine's lease admits the caller at
// the moment of the commit.
func (c *call) underLease(m *volant.Machine) store.Change {
	key := volant.RecordKey(volant.KindLease, m.App, m.ID)
	return func(ctx context.Context, r store.Reader, _ string) (*store.Op, store.Revision, error) {
		l, mod, err := store.LoadAny[volant.Lease](ctx, r, key)
		if err != nil && !errors.Is(err, volant.ErrNotFound) {
			return nil, mod, err
		}
		if err := c.admits(m.ID, l, time.Now()); err != nil {
			return nil, mod, err
		}
		return &store.Op{Verb: store.Check, Key: key, Expect: mod}, mod, nil
	}
}

// commit makes the changes of one machine, unless somebody else holds its lease.
func (s *Server) commit(c *call, m *volant.Machine, changes ...store.Change) error {
	changes = append([]store.Change{c.underLease(m)}, changes...)
	for {
		rev, err := store.Apply(c.ctx(), s.Store, c.who.name, changes...)
		if errors.Is(err, volant.ErrStaleTerm) && c.ctx().Err() == nil {
			continue // the lease was changed in between: look at it again
		}
		if err != nil {
			return err
		}
		return s.seen(c, rev)
	}
}

// leaseView is a lease in the forms that clients read: in an envelope, and flat beside it. The nonce is
// told to who made or renewed the lease alone.
func leaseView(l *volant.Lease, nonce bool) api.Lease {
	d := api.LeaseData{ExpiresAt: l.Expires.Unix(), Owner: l.Owner, Description: l.Description, Version: l.Version}
	if nonce {
		d.Nonce = l.Nonce
	}
	return api.Lease{Status: "success", Data: d, LeaseData: d}
}

func (s *Server) getLease(w http.ResponseWriter, c *call) error {
	_, m, snap, err := s.machine(c)
	if err != nil {
		return err
	}
	l, _ := snap.Lease(volant.MachineID(m.ID))
	if !l.Live(time.Now()) {
		return volant.Errorf(volant.ErrNotFound, "machine %s has no lease", m.ID)
	}
	reply(w, http.StatusOK, leaseView(l, false))
	return nil
}

// takeLease makes a lease, or gives the one of the caller's nonce its whole time again.
func (s *Server) takeLease(w http.ResponseWriter, c *call) error {
	a, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return destroyedError(m)
	}
	var in api.CreateLease
	if err := c.read(w, &in); err != nil {
		return err
	}
	ttl, err := c.number("ttl", cmp.Or(in.TTL, defaultLease), 1, longestLease)
	if err != nil {
		return err
	}
	l, err := s.lease(c, m, in.Description, ttl)
	if err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), "lease_taken", "machine "+m.ID+" is leased to "+l.Owner+" until "+l.Expires.Format(time.RFC3339))
	reply(w, http.StatusCreated, leaseView(l, true))
	return nil
}

func checkTTL(ttl int) error {
	if ttl < 0 || ttl > longestLease {
		return volant.Invalidf("a lease of %d seconds: use 1 to %d", ttl, longestLease)
	}
	return nil
}

// newLease is a lease of the caller on a machine.
func newLease(c *call, m *volant.Machine, description string, ttl int) *volant.Lease {
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24
	l := &volant.Lease{
		Nonce: hex.EncodeToString(b), Owner: c.who.name, Description: description, Version: m.Version,
		Expires: time.Now().UTC().Add(time.Duration(ttl) * time.Second),
	}
	l.Meta = volant.Meta{Kind: volant.KindLease, Org: m.Org, App: m.App, ID: m.ID}
	return l
}

func (s *Server) lease(c *call, m *volant.Machine, description string, ttl int) (*volant.Lease, error) {
	if len(description) > 1024 {
		return nil, volant.Invalidf("the description has %d bytes: use at most 1024", len(description))
	}
	if err := checkTTL(ttl); err != nil {
		return nil, err
	}
	l := newLease(c, m, description, ttl)
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, c.claim(l))
	if err != nil {
		return nil, err
	}
	return l, s.seen(c, rev)
}

// claim is the Change which writes l in place of a lease that has ended, or of the caller's own, whose nonce
// it keeps then.
func (c *call) claim(l *volant.Lease) store.Change {
	fresh, create := l.Nonce, store.Creation(l)
	return func(ctx context.Context, r store.Reader, actor string) (*store.Op, store.Revision, error) {
		old, mod, err := store.LoadAny[volant.Lease](ctx, r, l.Key())
		if err != nil && !errors.Is(err, volant.ErrNotFound) {
			return nil, mod, err
		}
		if err := c.admits(l.ID, old, time.Now()); err != nil {
			return nil, mod, err
		}
		l.Nonce = fresh
		if old.Live(time.Now()) {
			l.Nonce, l.Description = old.Nonce, cmp.Or(l.Description, old.Description)
		}
		op, _, err := create(ctx, r, actor)
		if err == nil {
			op.Expect = mod
		}
		return op, mod, err
	}
}

// endLease gives the caller's lease back.
func (s *Server) endLease(w http.ResponseWriter, c *call) error {
	a, m, snap, err := s.machine(c)
	if err != nil {
		return err
	}
	l, _ := snap.Lease(volant.MachineID(m.ID))
	switch {
	case !l.Live(time.Now()):
		return volant.Errorf(volant.ErrNotFound, "machine %s has no lease", m.ID)
	case !c.holds(l):
		return leasedError(l)
	}
	rev, err := store.Apply(c.ctx(), s.Store, c.who.name, store.Edit(l.Key(), func(now *volant.Lease) error {
		if now.Nonce != l.Nonce {
			return leasedError(now)
		}
		now.Tombstone = true
		return nil
	}))
	if err != nil {
		return err
	}
	if err := s.seen(c, rev); err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), "lease_ended", "machine "+m.ID+": its lease was given back")
	reply(w, http.StatusOK, map[string]bool{"ok": true})
	return nil
}
