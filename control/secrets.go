package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/store"
)

// Bounds of an app's secrets. All of them are one record, and one environment.
const (
	maxSecrets     = 500
	maxSecretValue = 64 << 10
	maxSecretBytes = 512 << 10
)

// secretsWithin is how long a read waits for the version it asks for.
const secretsWithin = 5 * time.Second

var secretName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

func checkSecret(name, value string) error {
	switch {
	case !secretName.MatchString(name):
		return volant.Invalidf("secret %q: use 1 to 128 letters, digits and underscores, with no digit first", cut(name))
	case len(value) > maxSecretValue:
		return volant.Invalidf("the value of secret %s has %d bytes: use at most %d", name, len(value), maxSecretValue)
	case strings.ContainsRune(value, 0):
		return volant.Invalidf("the value of secret %s has a zero byte in it, which no environment can hold", name).
			WithRemedy("encode it, for example as base64; files with secret_name are decoded from that")
	}
	return nil
}

// cut bounds what an error repeats of a caller's text.
func cut(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func secretView(name string, sc volant.Secret) api.AppSecret {
	return api.AppSecret{Name: name, Digest: sc.Digest, CreatedAt: sc.Created, UpdatedAt: sc.Updated}
}

func secretsView(rec *volant.Secrets) api.AppSecrets {
	out := api.AppSecrets{Secrets: []api.AppSecret{}}
	if rec == nil {
		return out
	}
	out.Version = rec.Version
	for _, name := range slices.Sorted(maps.Keys(rec.Values)) {
		out.Secrets = append(out.Secrets, secretView(name, rec.Values[name]))
	}
	return out
}

// secrets finds the app's secrets, nil if none was ever set, once they have the version asked for.
func (s *Server) secrets(c *call) (*volant.App, *volant.Secrets, error) {
	a, _, err := s.app(c)
	if err != nil {
		return nil, nil, err
	}
	if c.flag("show_secrets") {
		return nil, nil, volant.Errorf(volant.ErrForbidden, "values of secrets are never shown").
			WithRemedy("leave show_secrets out; whether a value is the one you think, its digest tells after you set it again")
	}
	var least uint64
	if v := c.r.URL.Query().Get("min_version"); v != "" {
		if least, err = strconv.ParseUint(v, 10, 64); err != nil {
			return nil, nil, volant.Invalidf("min_version=%q: use a version that setting a secret answered", cut(v))
		}
	}
	var rec *volant.Secrets
	err = s.untilSnapshot(c, secretsWithin, func(snap *catalog.Snapshot) (bool, error) {
		rec, _ = snap.Secrets(a.App)
		return least == 0 || rec != nil && rec.Version >= least, nil
	})
	if errors.Is(err, errTimeout) {
		var now uint64
		if rec != nil {
			now = rec.Version
		}
		return nil, nil, volant.Errorf(volant.ErrPrecondition, "the secrets of app %s are at version %d, not yet at %d", a.Name, now, least).
			WithRemedy("ask for a version that setting a secret answered")
	}
	return a, rec, err
}

func (s *Server) listSecrets(w http.ResponseWriter, c *call) error {
	_, rec, err := s.secrets(c)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, secretsView(rec))
	return nil
}

func (s *Server) getSecret(w http.ResponseWriter, c *call) error {
	a, rec, err := s.secrets(c)
	if err != nil {
		return err
	}
	name := c.r.PathValue("name")
	if rec != nil {
		if sc, ok := rec.Values[name]; ok {
			reply(w, http.StatusOK, secretView(name, sc))
			return nil
		}
	}
	return noSecret(a, name)
}

func noSecret(a *volant.App, name string) error {
	return volant.Errorf(volant.ErrNotFound, "app %s has no secret %q", a.Name, cut(name)).
		WithRemedy("see `volant secrets list --app %s`", a.Name)
}

func (s *Server) setSecrets(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.SetSecrets
	if err := c.read(w, &in); err != nil {
		return err
	}
	if len(in.Values) == 0 {
		return volant.Invalidf("values names no secret").WithRemedy(`send {"values":{"NAME":"value"}}; a value of null unsets the secret`)
	}
	rec, err := s.changeSecrets(c, a, in.Values)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, secretsView(rec))
	return nil
}

func (s *Server) setSecret(w http.ResponseWriter, c *call) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.SetSecret
	if err := c.read(w, &in); err != nil {
		return err
	}
	name := c.r.PathValue("name")
	if in.Value == nil {
		return volant.Invalidf("the secret %q has no value", cut(name)).WithRemedy(`send {"value":"…"}; DELETE unsets it`)
	}
	rec, err := s.changeSecrets(c, a, map[string]*string{name: in.Value})
	if err != nil {
		return err
	}
	reply(w, http.StatusCreated, api.ChangedSecret{AppSecret: secretView(name, rec.Values[name]), Version: rec.Version})
	return nil
}

func (s *Server) deleteSecret(w http.ResponseWriter, c *call) error {
	a, snap, err := s.app(c)
	if err != nil {
		return err
	}
	name := c.r.PathValue("name")
	rec, ok := snap.Secrets(a.App)
	if !ok {
		return noSecret(a, name)
	}
	if _, ok := rec.Values[name]; !ok {
		return noSecret(a, name)
	}
	if rec, err = s.changeSecrets(c, a, map[string]*string{name: nil}); err != nil {
		return err
	}
	reply(w, http.StatusOK, api.SecretsVersion{Version: rec.Version})
	return nil
}

// SecretPlace is what a secret's value is sealed for.
func SecretPlace(app volant.AppID, name string) string { return string(app) + "/" + name }

// changeSecrets sets and, where a value is nil, unsets secrets in one step.
func (s *Server) changeSecrets(c *call, a *volant.App, values map[string]*string) (*volant.Secrets, error) {
	names := slices.Sorted(maps.Keys(values))
	sealed := map[string]volant.Secret{}
	for _, name := range names {
		v := values[name]
		if v == nil {
			continue
		}
		if err := checkSecret(name, *v); err != nil {
			return nil, err
		}
		place := SecretPlace(a.App, name)
		box, err := s.Secrets.Seal(place, []byte(*v))
		if err != nil {
			return nil, err
		}
		sealed[name] = volant.Secret{Digest: s.Secrets.Digest(place, []byte(*v)), Sealed: box}
	}
	var before uint64
	rec, rev, err := writeSecrets(c.ctx(), s.Store, c.who.name, a, volant.SecretsID, func(rec *volant.Secrets) error {
		before = rec.Version
		return mergeSecrets(rec, names, sealed)
	})
	if err != nil {
		return nil, err
	}
	if err := s.seen(c, rev); err != nil {
		return nil, err
	}
	if rec.Version != before {
		s.audit(c, a.Org, a.App, "", "secrets_set", fmt.Sprintf("secrets of app %s are at version %d: %s", a.Name, rec.Version, said(names, sealed)))
	}
	return rec, nil
}

// mergeSecrets changes rec, and its version if anything of it changed.
func mergeSecrets(rec *volant.Secrets, names []string, sealed map[string]volant.Secret) error {
	now, next := time.Now().UTC(), maps.Clone(rec.Values)
	if next == nil {
		next = map[string]volant.Secret{}
	}
	changed := false
	for _, name := range names {
		old, had := next[name]
		sc, set := sealed[name]
		switch {
		case !set:
			delete(next, name)
			changed = changed || had
		case !had || old.Digest != sc.Digest:
			sc.Version, sc.Created, sc.Updated = rec.Version+1, now, now
			if had {
				sc.Created = old.Created
			}
			next[name] = sc
			changed = true
		}
	}
	if !changed {
		return nil
	}
	size := 0
	for name, sc := range next {
		size += len(name) + len(sc.Sealed)
	}
	if len(next) > maxSecrets || size > maxSecretBytes {
		return volant.Invalidf("the app would have %d secrets of %d bytes: use at most %d and %d bytes in all", len(next), size, maxSecrets, maxSecretBytes).
			WithRemedy("unset some, or keep what is large elsewhere")
	}
	rec.Version++
	rec.Values = next
	return nil
}

// said lists names for people, without any value.
func said(names []string, set map[string]volant.Secret) string {
	var parts []string
	for _, n := range names {
		word := "unset"
		if _, ok := set[n]; ok {
			word = "set"
		}
		parts = append(parts, word+" "+n)
	}
	if len(parts) > 20 {
		parts = append(parts[:20], fmt.Sprintf("and %d more", len(names)-20))
	}
	return strings.Join(parts, ", ")
}

// writeSecrets changes the app's record of secrets or of keys, or makes it.
func writeSecrets(ctx context.Context, st store.Store, actor string, a *volant.App, id string, fn func(*volant.Secrets) error) (*volant.Secrets, store.Revision, error) {
	for range 16 { // somebody else may make it at the same moment
		rec, rev, err := store.Update(ctx, st, actor, volant.RecordKey(volant.KindSecrets, a.App, id), fn)
		if !errors.Is(err, volant.ErrNotFound) {
			return rec, rev, err
		}
		rec = &volant.Secrets{}
		rec.Meta = volant.Meta{Kind: volant.KindSecrets, Org: a.Org, App: a.App, ID: id}
		if err := fn(rec); err != nil {
			return nil, rev, err
		}
		rev, err = store.Create(ctx, st, actor, rec)
		if !errors.Is(err, volant.ErrExists) {
			return rec, rev, err
		}
	}
	return nil, store.Revision{}, volant.Errorf(volant.ErrConflict, "others change the secrets of app %s at the same time", a.Name).WithRemedy("try again")
}
