package storetest_test

import (
	"errors"
	"testing"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Test(t, func(*testing.T) store.Store { return storetest.New() })
}

func TestMemoryFaults(t *testing.T) {
	m := storetest.New()
	rev, err := m.Commit(t.Context(), store.Op{Key: "a"})
	if err != nil {
		t.Fatal(err)
	}
	m.SetDown(true)
	if _, err := m.Get(t.Context(), "a"); !errors.Is(err, volant.ErrUnavailable) {
		t.Errorf("down: got %v, want unavailable", err)
	}
	m.SetDown(false)
	if _, err := m.Commit(t.Context(), store.Op{Key: "b"}); err != nil {
		t.Fatal(err)
	}
	m.Compact()
	if err := m.Watch(t.Context(), "", rev, nil); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("compacted: got %v", err)
	}
}
