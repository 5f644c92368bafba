package etcd

import "context"

// CheckDatabase is for tests: a crash of bbolt on a damaged file cannot be tested in the test's process.
var CheckDatabase = checkDatabase

// Tidy does what Run does once a minute.
func (s *Store) Tidy(ctx context.Context) {
	if m, _, err := s.at(); err == nil {
		s.tidy(ctx, m)
	}
}
