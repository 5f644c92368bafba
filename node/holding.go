package node

import (
	"context"
	"sync"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
)

// holding knows which apps this server acts for. It is a perapp.Worker beside scaling and deploys, so that it
// begins and ends with them.
type holding struct {
	changed chan struct{} // 1 deep: rung with each change

	mu    sync.Mutex // guards the fields below
	held  map[volant.AppID]bool
	fresh map[volant.AppID]bool // changed since take
}

func newHolding() *holding {
	return &holding{changed: make(chan struct{}, 1), held: map[volant.AppID]bool{}, fresh: map[volant.AppID]bool{}}
}

// Work is perapp's.
func (h *holding) Work(ctx context.Context, app volant.AppID, _ perapp.Term) error {
	h.set(app, true)
	<-ctx.Done()
	h.set(app, false)
	return nil
}

func (h *holding) set(app volant.AppID, held bool) {
	h.mu.Lock()
	if held {
		h.held[app] = true
	} else {
		delete(h.held, app)
	}
	h.fresh[app] = true
	h.mu.Unlock()
	ring(h.changed)
}

// touch notes that who acts for an app changed.
func (h *holding) touch(app volant.AppID) {
	h.mu.Lock()
	h.fresh[app] = true
	h.mu.Unlock()
	ring(h.changed)
}

// take returns the apps that changed since the take before.
func (h *holding) take() map[volant.AppID]bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	fresh := h.fresh
	h.fresh = map[volant.AppID]bool{}
	return fresh
}

func (h *holding) holds(app volant.AppID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[app]
}
