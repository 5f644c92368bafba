package etcd

import (
	"context"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// Get implements store.Reader.
func (s *Seat) Get(ctx context.Context, key string) (store.Entry, error) {
	return s.now().Get(ctx, key)
}

// List implements store.Reader.
func (s *Seat) List(ctx context.Context, prefix string) ([]store.Entry, store.Revision, error) {
	return s.now().List(ctx, prefix)
}

// Watch implements store.Reader.
func (s *Seat) Watch(ctx context.Context, prefix string, after store.Revision, fn func(store.Batch) error) error {
	return s.now().Watch(ctx, prefix, after, fn)
}

// Commit implements store.Store.
func (s *Seat) Commit(ctx context.Context, ops ...store.Op) (store.Revision, error) {
	return s.now().Commit(ctx, ops...)
}

// Grant implements store.Store.
func (s *Seat) Grant(ctx context.Context, ttl time.Duration) (store.LeaseID, error) {
	return s.now().Grant(ctx, ttl)
}

// Renew implements store.Store.
func (s *Seat) Renew(ctx context.Context, id store.LeaseID) error { return s.now().Renew(ctx, id) }

// Revoke implements store.Store.
func (s *Seat) Revoke(ctx context.Context, id store.LeaseID) error { return s.now().Revoke(ctx, id) }

// Seed is that of the store.
func (s *Seat) Seed(ctx context.Context, epoch uint64, entries []store.Entry) (store.Revision, error) {
	return s.now().Seed(ctx, epoch, entries)
}

// Members implements Admin.
func (s *Seat) Members(ctx context.Context) ([]Member, error) { return s.now().Members(ctx) }

// AddMember implements Admin.
func (s *Seat) AddMember(ctx context.Context, node volant.NodeID, at Addrs) (InitialCluster, error) {
	return s.now().AddMember(ctx, node, at)
}

// Promote implements Admin.
func (s *Seat) Promote(ctx context.Context, node volant.NodeID) error {
	return s.now().Promote(ctx, node)
}

// RemoveMember implements Admin.
func (s *Seat) RemoveMember(ctx context.Context, node volant.NodeID) error {
	return s.now().RemoveMember(ctx, node)
}

// ReplaceMember implements Admin.
func (s *Seat) ReplaceMember(ctx context.Context, node volant.NodeID, at Addrs) (InitialCluster, error) {
	return s.now().ReplaceMember(ctx, node, at)
}
