package node

import (
	"context"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/store"
)

// termTTL is how long the store keeps the terms of a node that does not renew them: so long does an app go without
// scaling when its scaler's node dies.
const termTTL = 6 * time.Second

// appTerms hands out the terms of apps as scaling and deploys ask for them.
type appTerms struct{ terms *store.Terms }

func (t appTerms) Acquire(ctx context.Context, app volant.AppID) (perapp.Term, error) {
	term, err := t.terms.Hold(ctx, termOf(app))
	if err != nil {
		return nil, err
	}
	return appTerm{term}, nil
}

// appTermPrefix begins the keys of apps' terms, without store.TermPrefix.
const appTermPrefix = "app/"

// termOf is the key of an app's term, without store.TermPrefix.
func termOf(app volant.AppID) string { return appTermPrefix + string(app) }

// termChanged hears that a term has another holder, or that nobody knows any more.
func (p *Platform) termChanged(key string) {
	if app, ok := strings.CutPrefix(key, appTermPrefix); ok {
		p.holding.touch(volant.AppID(app))
	}
}

// scaled says whether some node acts for an app now, as far as is known here. Where it is not, connections wake
// machines by themselves.
func (p *Platform) scaled(app volant.AppID) bool {
	if p.holding.holds(app) {
		return true
	}
	owner, known := p.terms.Owner(termOf(app))
	return known && owner != "" && owner != string(p.Node) && !p.known.silent(volant.NodeID(owner))
}

type appTerm struct{ *store.Term }

// Release gives the term up; a store that does not answer lets it run out.
func (t appTerm) Release() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = t.Term.Release(ctx)
}
