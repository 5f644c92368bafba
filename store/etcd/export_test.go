package etcd

import "context"

// CheckDatabase is for tests: a crash of bbolt on a damaged file cannot be tested in the test's process.
var CheckDatabase = checkDatabase

// Tidy does what Run does once a minute.
func (s *Store) Tidy(ctx context.Context) {
	if m, err := s.running(); err == nil {
		s.tidy(ctx, m)
	}
}

// Kill ends the member as a crash of its node does: nobody hears of it.
func (s *Store) Kill() error { return s.shut(false) }
