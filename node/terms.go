package node

import (
	"context"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/store"
)

// appTerms hands out the terms of apps as scaling and deploys ask for them.
type appTerms struct{ terms *store.Terms }

func (t appTerms) Acquire(ctx context.Context, app volant.AppID) (perapp.Term, error) {
	term, err := t.terms.Hold(ctx, termOf(app))
	if err != nil {
		return nil, err
	}
	return appTerm{term}, nil
}

// termOf is the key of an app's term, without store.TermPrefix.
func termOf(app volant.AppID) string { return "app/" + string(app) }

type appTerm struct{ *store.Term }

// Release gives the term up; a store that does not answer lets it run out.
func (t appTerm) Release() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = t.Term.Release(ctx)
}
