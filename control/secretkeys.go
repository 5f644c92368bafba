package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/secret"
	"github.com/volant-edge/volant/store"
)

// secretKeysID is the ID of the one record of an app's keys, which no machine gets.
const secretKeysID = "keys"

// maxSecretKeys bounds an app's keys.
const maxSecretKeys = 100

func keyPlace(app volant.AppID, name string) string { return string(app) + "/key/" + name }

func secretKeysKey(app volant.AppID) string {
	return volant.RecordKey(volant.KindSecrets, app, secretKeysID)
}

func secretKeyView(name string, sc volant.Secret) api.SecretKey {
	return api.SecretKey{Name: name, Type: sc.Type, PublicKey: sc.Public, CreatedAt: sc.Created, UpdatedAt: sc.Updated}
}

// secretKeys reads the app's keys, which are not in the catalog, once they have the version asked for.
func (s *Server) secretKeys(c *call) (*volant.App, *volant.Secrets, error) {
	a, _, err := s.app(c)
	if err != nil {
		return nil, nil, err
	}
	rec, err := store.Load[volant.Secrets](c.ctx(), s.Store, secretKeysKey(a.App))
	if errors.Is(err, volant.ErrNotFound) {
		rec, err = &volant.Secrets{}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if v := c.r.URL.Query().Get("min_version"); v != "" {
		least, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return nil, nil, volant.Invalidf("min_version=%q: use a version that setting a key answered", cut(v))
		}
		if rec.Version < least {
			return nil, nil, volant.Errorf(volant.ErrPrecondition, "the keys of app %s are at version %d, not at %d", a.Name, rec.Version, least).
				WithRemedy("ask for a version that setting a key answered")
		}
	}
	return a, rec, nil
}

func (s *Server) listSecretKeys(w http.ResponseWriter, c *call) error {
	_, rec, err := s.secretKeys(c)
	if err != nil {
		return err
	}
	types := c.r.URL.Query().Get("types")
	out := api.SecretKeys{SecretKeys: []api.SecretKey{}}
	for _, name := range slices.Sorted(maps.Keys(rec.Values)) {
		if sc := rec.Values[name]; types == "" || slices.Contains(strings.Split(types, ","), sc.Type) {
			out.SecretKeys = append(out.SecretKeys, secretKeyView(name, sc))
		}
	}
	reply(w, http.StatusOK, out)
	return nil
}

// secretKey is the key of the path, sealed.
func (s *Server) secretKey(c *call) (*volant.App, string, volant.Secret, error) {
	a, rec, err := s.secretKeys(c)
	if err != nil {
		return nil, "", volant.Secret{}, err
	}
	name := c.r.PathValue("name")
	sc, ok := rec.Values[name]
	if !ok {
		return nil, "", sc, noSecretKey(a, name)
	}
	return a, name, sc, nil
}

func noSecretKey(a *volant.App, name string) error {
	return volant.Errorf(volant.ErrNotFound, "app %s has no key %q", a.Name, cut(name)).WithRemedy("GET /v1/apps/%s/secretkeys lists them", a.Name)
}

// openKey is the key of the path, to be used.
func (s *Server) openKey(c *call) (*secret.Key, error) {
	a, name, sc, err := s.secretKey(c)
	if err != nil {
		return nil, err
	}
	plain, err := s.Secrets.Open(keyPlace(a.App, name), sc.Sealed)
	if err != nil {
		return nil, err
	}
	return secret.ParseKey(sc.Type, plain)
}

func (s *Server) getSecretKey(w http.ResponseWriter, c *call) error {
	_, name, sc, err := s.secretKey(c)
	if err != nil {
		return err
	}
	reply(w, http.StatusOK, secretKeyView(name, sc))
	return nil
}

func (s *Server) setSecretKey(w http.ResponseWriter, c *call) error {
	return s.addKey(w, c, func(in *api.SetSecretKey) (*secret.Key, error) { return secret.ParseKey(in.Type, in.Value) })
}

func (s *Server) generateSecretKey(w http.ResponseWriter, c *call) error {
	return s.addKey(w, c, func(in *api.SetSecretKey) (*secret.Key, error) {
		if len(in.Value) > 0 {
			return nil, volant.Invalidf("a key that is generated has no value").WithRemedy("leave value out, or set the key")
		}
		return secret.GenerateKey(in.Type)
	})
}

// addKey adds a key. It never takes the place of one: what that encrypted would be lost.
func (s *Server) addKey(w http.ResponseWriter, c *call, from func(*api.SetSecretKey) (*secret.Key, error)) error {
	a, _, err := s.app(c)
	if err != nil {
		return err
	}
	var in api.SetSecretKey
	if err := c.read(w, &in); err != nil {
		return err
	}
	name := c.r.PathValue("name")
	if !secretName.MatchString(name) {
		return volant.Invalidf("key %q: use 1 to 128 letters, digits and underscores, with no digit first", cut(name))
	}
	key, err := from(&in)
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	sc := volant.Secret{Type: key.Type, Created: now, Updated: now}
	if sc.Public, err = key.Public(); err != nil {
		return err
	}
	place := keyPlace(a.App, name)
	sc.Digest = s.Secrets.Digest(place, key.Bytes())
	if sc.Sealed, err = s.Secrets.Seal(place, key.Bytes()); err != nil {
		return err
	}
	rec, err := s.changeKeys(c.ctx(), c, a, func(rec *volant.Secrets) error {
		if _, ok := rec.Values[name]; ok {
			return volant.Errorf(volant.ErrExists, "app %s has a key %s", a.Name, name).WithRemedy("delete it first; what it encrypted is lost then")
		}
		if len(rec.Values) >= maxSecretKeys {
			return volant.Invalidf("app %s has %d keys: use at most %d", a.Name, len(rec.Values), maxSecretKeys)
		}
		rec.Version++
		sc.Version = rec.Version
		rec.Values = maps.Clone(rec.Values)
		if rec.Values == nil {
			rec.Values = map[string]volant.Secret{}
		}
		rec.Values[name] = sc
		return nil
	})
	if err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "secretkey_set", fmt.Sprintf("app %s has a key %s of type %s", a.Name, name, key.Type))
	reply(w, http.StatusCreated, api.ChangedSecretKey{SecretKey: secretKeyView(name, rec.Values[name]), Version: rec.Version})
	return nil
}

func (s *Server) changeKeys(ctx context.Context, c *call, a *volant.App, fn func(*volant.Secrets) error) (*volant.Secrets, error) {
	rec, _, err := writeSecrets(ctx, s.Store, c.who.name, a, secretKeysID, fn)
	return rec, err
}

func (s *Server) deleteSecretKey(w http.ResponseWriter, c *call) error {
	a, name, _, err := s.secretKey(c)
	if err != nil {
		return err
	}
	rec, err := s.changeKeys(c.ctx(), c, a, func(rec *volant.Secrets) error {
		if _, ok := rec.Values[name]; !ok {
			return noSecretKey(a, name)
		}
		rec.Version++
		rec.Values = maps.Clone(rec.Values)
		delete(rec.Values, name)
		return nil
	})
	if err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, "", "secretkey_removed", fmt.Sprintf("app %s no longer has the key %s", a.Name, name))
	reply(w, http.StatusOK, api.SecretsVersion{Version: rec.Version})
	return nil
}

// useKey answers what fn makes of the body and the key of the path.
func useKey[In, Out any](s *Server, fn func(k *secret.Key, in *In) (Out, error)) handler {
	return func(w http.ResponseWriter, c *call) error {
		key, err := s.openKey(c)
		if err != nil {
			return err
		}
		var in In
		if err := c.read(w, &in); err != nil {
			return err
		}
		out, err := fn(key, &in)
		if err != nil {
			return err
		}
		reply(w, http.StatusOK, out)
		return nil
	}
}

// verifySecretKey answers 204 to a good signature.
func (s *Server) verifySecretKey(w http.ResponseWriter, c *call) error {
	key, err := s.openKey(c)
	if err != nil {
		return err
	}
	var in api.VerifySecretKey
	if err := c.read(w, &in); err != nil {
		return err
	}
	if err := key.Verify(in.Plaintext, in.Signature); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) secretKeyRoutes() []Route {
	least := query("min_version", "string", "412 if the keys do not have this version")
	const base, one = "/v1/apps/{app}/secretkeys", "/v1/apps/{app}/secretkeys/{name}"
	return []Route{
		at("GET "+base, scopeRead, "secretkey.list", s.listSecretKeys, "List an app's keys, without their values", nil, ok(api.SecretKeys{}), least,
			query("types", "string", "only of these types, with commas between")),
		at("GET "+one, scopeRead, "secretkey.get", s.getSecretKey, "Read what may be shown of a key", nil, ok(api.SecretKey{}), least),
		at("POST "+one, scopeDeploy, "secretkey.set", s.setSecretKey, "Let the platform keep a key that you have", api.SetSecretKey{}, created(api.ChangedSecretKey{})),
		at("POST "+one+"/generate", scopeDeploy, "secretkey.set", s.generateSecretKey, "Generate a key", api.SetSecretKey{}, created(api.ChangedSecretKey{})),
		at("DELETE "+one, scopeDeploy, "secretkey.set", s.deleteSecretKey, "Delete a key", nil, ok(api.SecretsVersion{})),
		at("POST "+one+"/encrypt", scopeDeploy, "secretkey.encrypt", useKey(s, func(k *secret.Key, in *api.EncryptSecretKey) (out api.EncryptedSecretKey, err error) {
			out.Ciphertext, err = k.Encrypt(in.Plaintext, in.AssociatedData)
			return out, err
		}), "Encrypt by a key", api.EncryptSecretKey{}, ok(api.EncryptedSecretKey{}), least),
		at("POST "+one+"/decrypt", scopeDeploy, "secretkey.decrypt", useKey(s, func(k *secret.Key, in *api.DecryptSecretKey) (out api.DecryptedSecretKey, err error) {
			out.Plaintext, err = k.Decrypt(in.Ciphertext, in.AssociatedData)
			if out.Plaintext == nil {
				out.Plaintext = []byte{}
			}
			return out, err
		}), "Decrypt by a key", api.DecryptSecretKey{}, ok(api.DecryptedSecretKey{}), least),
		at("POST "+one+"/sign", scopeDeploy, "secretkey.sign", useKey(s, func(k *secret.Key, in *api.SignSecretKey) (out api.SignedSecretKey, err error) {
			out.Signature, err = k.Sign(in.Plaintext)
			return out, err
		}), "Sign by a key", api.SignSecretKey{}, ok(api.SignedSecretKey{}), least),
		at("POST "+one+"/verify", scopeDeploy, "secretkey.verify", s.verifySecretKey, "Verify a signature by a key; 204 if it is good", api.VerifySecretKey{}, empty(http.StatusNoContent), least),
	}
}
