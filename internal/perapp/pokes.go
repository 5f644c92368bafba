package perapp

import (
	"sync"

	volant "github.com/volant-edge/volant"
)

// Pokes are what wakes the Loop of each app. The zero Pokes is ready.
type Pokes struct {
	mu  sync.Mutex // guards all
	all map[volant.AppID]chan struct{}
}

// Poke says that something about the app changed.
func (p *Pokes) Poke(app volant.AppID) {
	select {
	case p.Of(app) <- struct{}{}:
	default: // one is waiting already
	}
}

// Of is what the app's Loop hears.
func (p *Pokes) Of(app volant.AppID) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all == nil {
		p.all = map[volant.AppID]chan struct{}{}
	}
	c := p.all[app]
	if c == nil {
		c = make(chan struct{}, 1)
		p.all[app] = c
	}
	return c
}

// Forget drops what is kept of an app that is deleted.
func (p *Pokes) Forget(app volant.AppID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.all, app)
}
