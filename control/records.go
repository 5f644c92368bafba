package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store"
)

// writeApp writes a new app and claims its name.
func writeApp(ctx context.Context, s store.Store, actor string, a *volant.App) (store.Revision, error) {
	name := &volant.AppName{Owner: a.App}
	name.Meta = volant.Meta{Kind: volant.KindAppName, Org: a.Org, ID: a.Name}
	rev, err := store.Apply(ctx, s, actor, store.Claim(name), store.Creation(a))
	if errors.Is(err, volant.ErrExists) {
		return rev, volant.Errorf(volant.ErrExists, "the app name %q is taken", a.Name).WithRemedy("choose another")
	}
	return rev, err
}

// batch bounds the operations of one commit below store.MaxOps.
const batch = 100

// eraseApp wishes the app's machines destroyed, then makes its addresses, releases, name and itself
// tombstones. Each commit leaves an app that can be erased again.
func eraseApp(ctx context.Context, s store.Store, actor string, a *volant.App) (store.Revision, error) {
	var changes []store.Change
	var rev store.Revision
	flush := func() (err error) {
		if len(changes) > 0 {
			rev, err = store.Apply(ctx, s, actor, changes...)
			changes = changes[:0]
		}
		return err
	}
	add := func(c store.Change) error {
		if changes = append(changes, c); len(changes) >= batch {
			return flush()
		}
		return nil
	}
	machines, _, err := store.All[volant.Machine](ctx, s, keyPrefix(volant.KindMachine, a.App))
	if err != nil {
		return rev, err
	}
	for _, m := range machines {
		if err := add(store.Edit(m.Key(), func(m *volant.Machine) error { m.Run = volant.RunDestroyed; return nil })); err != nil {
			return rev, err
		}
	}
	releases, _, err := store.All[volant.Release](ctx, s, keyPrefix(volant.KindRelease, a.App))
	if err != nil {
		return rev, err
	}
	for _, r := range releases {
		if err := add(store.Removal(r.Key())); err != nil {
			return rev, err
		}
	}
	addrs, _, err := store.All[volant.Address](ctx, s, keyPrefix(volant.KindAddress, ""))
	if err != nil {
		return rev, err
	}
	for _, ad := range addrs {
		if ad.Owner == a.App {
			if err := add(releasing(a.App, ad.Key())); err != nil {
				return rev, err
			}
		}
	}
	certs, _, err := store.All[volant.Certificate](ctx, s, keyPrefix(volant.KindCert, ""))
	if err != nil {
		return rev, err
	}
	for _, ct := range certs {
		if ct.Owner == a.App {
			if err := add(store.Removal(ct.Key())); err != nil {
				return rev, err
			}
		}
	}
	tokens, _, err := store.All[volant.Token](ctx, s, keyPrefix(volant.KindToken, a.App))
	if err != nil {
		return rev, err
	}
	for _, t := range tokens {
		if err := add(store.Removal(t.Key())); err != nil {
			return rev, err
		}
	}
	secrets, _, err := store.All[volant.Secrets](ctx, s, keyPrefix(volant.KindSecrets, a.App))
	if err != nil {
		return rev, err
	}
	for _, sc := range secrets {
		if err := add(erasure(sc.Key())); err != nil {
			return rev, err
		}
	}
	if err := flush(); err != nil {
		return rev, err
	}
	return store.Apply(ctx, s, actor, store.Removal(a.Key()), store.Removal(volant.RecordKey(volant.KindAppName, "", a.Name)))
}

// erasure makes an app's secrets a tombstone that keeps no value.
func erasure(key string) store.Change {
	return store.Edit(key, func(sc *volant.Secrets) error {
		sc.Values, sc.Tombstone = nil, true
		return nil
	})
}

func keyPrefix(kind volant.Kind, app volant.AppID) string {
	if app == "" {
		app = "-"
	}
	return string(kind) + "/" + string(app) + "/"
}

// writeRelease writes the app's next release and what it changes of the app in one commit.
func writeRelease(ctx context.Context, s store.Store, actor string, a *volant.App, r volant.Release, change func(*volant.App) error) (*volant.Release, store.Revision, error) {
	for range 16 { // somebody else may deploy at the same moment
		releases, _, err := store.All[volant.Release](ctx, s, keyPrefix(volant.KindRelease, a.App))
		if err != nil {
			return nil, store.Revision{}, err
		}
		r.Version = 1
		for _, old := range releases {
			r.Version = max(r.Version, old.Version+1)
		}
		r.Meta = volant.Meta{Kind: volant.KindRelease, Org: a.Org, App: a.App, ID: releaseID(r.Version)}
		rec := r
		rev, err := store.Apply(ctx, s, actor, store.Creation(&rec), store.Edit(a.Key(), change))
		if !errors.Is(err, volant.ErrExists) {
			return &rec, rev, err
		}
	}
	return nil, store.Revision{}, volant.Errorf(volant.ErrConflict, "others deploy app %s at the same time", a.Name).WithRemedy("try again")
}

// releaseID sorts as its version does.
func releaseID(version uint64) string { return fmt.Sprintf("%010d", version) }

func parseVersion(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, volant.Invalidf("release version %q is not a number", s)
	}
	return v, nil
}
