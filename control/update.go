package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/store"
)

// Bounds of the earlier configs that are kept of a machine.
const (
	keptVersions = 10
	keptBytes    = 256 << 10
)

// machineInput is the body of a create, an update and a PATCH, its config as it came.
type machineInput struct {
	api.UpdateMachine
	Config json.RawMessage `json:"config"`
}

// updateMachine gives a machine a whole new config.
func (s *Server) updateMachine(w http.ResponseWriter, c *call) error {
	return s.changeConfig(w, c, func(_ *volant.Machine, in json.RawMessage) (json.RawMessage, error) { return in, nil })
}

// patchMachine changes the parts of a machine's config that the body names, by RFC 7396.
func (s *Server) patchMachine(w http.ResponseWriter, c *call) error {
	return s.changeConfig(w, c, func(m *volant.Machine, in json.RawMessage) (json.RawMessage, error) {
		if len(in) == 0 {
			return nil, volant.Invalidf("config is missing").WithRemedy("send the parts of it to change, null to remove one")
		}
		doc, err := json.Marshal(m.Config)
		if err != nil {
			return nil, err
		}
		return mergePatch(doc, in)
	})
}

// changeConfig replaces the config of a machine under a new version. Its host runs the new one in place of
// the old, under the same ID.
func (s *Server) changeConfig(w http.ResponseWriter, c *call, next func(*volant.Machine, json.RawMessage) (json.RawMessage, error)) error {
	a, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return destroyedError(m)
	}
	own := *m // the catalog's record is everybody's, and what is written is written into this one
	m = &own
	var in machineInput
	if err := c.read(w, &in); err != nil {
		return err
	}
	if err := errors.Join(checkFixed(m, &in), checkTTL(in.LeaseTTL), s.checkSecrets(c, a, in.MinSecretsVersion)); err != nil {
		return err
	}
	for range 16 { // others may change the machine meanwhile, without a new version too
		var moved bool
		moved, err = s.tryConfig(c, m, &in, next)
		if !moved {
			break
		}
		if m, err = store.Load[volant.Machine](c.ctx(), s.Store, m.Key()); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), "machine_updated", "machine "+m.ID+": its config was changed")
	nonce := ""
	if in.LeaseTTL > 0 {
		l, err := s.lease(c, m, "", in.LeaseTTL)
		if err != nil {
			return err
		}
		nonce = l.Nonce
	}
	v := s.fullView(a, m)
	v.Nonce = nonce
	reply(w, http.StatusOK, v)
	return nil
}

// checkFixed refuses to change what never changes.
func checkFixed(m *volant.Machine, in *machineInput) error {
	if in.Region != "" && in.Region != string(m.Region) {
		return volant.Invalidf("region %q: machine %s is in %s and stays there", in.Region, m.ID, m.Region).WithRemedy("leave region out, or make a new machine")
	}
	if in.Name != "" && in.Name != m.Name {
		return volant.Invalidf("name %q: machine %s is called %s and stays so", in.Name, m.ID, m.Name).WithRemedy("leave name out")
	}
	return nil
}

// tryConfig writes the next config of a machine, unless it is no longer as m was read: then moved is true.
func (s *Server) tryConfig(c *call, m *volant.Machine, in *machineInput, next func(*volant.Machine, json.RawMessage) (json.RawMessage, error)) (moved bool, err error) {
	if err := isVersion(m, in.CurrentVersion); err != nil {
		return false, err
	}
	raw, err := next(m, in.Config)
	if err != nil {
		return false, err
	}
	cfg, err := decodeConfig(raw)
	if err != nil {
		return false, err
	}
	image, err := s.checkMachine(c, m.Org, &cfg, m)
	if err != nil {
		return false, err
	}
	old := *m
	have, _ := s.Catalog.Snapshot().Have(volant.MachineID(m.ID))
	awake := have.State.Awake() || have.State == volant.StateStarting
	var written volant.Machine
	err = s.commit(c, m, store.Edit(m.Key(), func(now *volant.Machine) error {
		if err := isVersion(now, in.CurrentVersion); err != nil {
			return err
		}
		if moved = now.Generation != old.Generation; moved {
			return volant.Errorf(volant.ErrConflict, "machine %s is being changed by others", now.ID).WithRemedy("try again")
		}
		if now.Run == volant.RunDestroyed {
			return destroyedError(now)
		}
		now.Config, now.Image, now.Version, now.SkipSecrets = cfg, image, ulid.Make().String(), in.SkipSecrets
		now.Launch = volant.LaunchKeep
		settleRun(&old, now, awake)
		if in.SkipLaunch {
			rest(now)
		}
		if in.SkipServiceRegistration {
			now.Cordoned = true
		}
		written = *now
		return nil
	}), remember(&old))
	if err == nil {
		*m = written
	}
	return moved, err
}

// remember is the Change which keeps the config that a machine has until now.
func remember(m *volant.Machine) store.Change {
	rec := &volant.Versions{Before: []volant.MachineVersion{{Version: m.Version, Image: m.Image, Config: m.Config}}}
	rec.Meta = volant.Meta{Kind: volant.KindVersions, Org: m.Org, App: m.App, ID: m.ID}
	return func(ctx context.Context, r store.Reader, actor string) (*store.Op, store.Revision, error) {
		_, err := r.Get(ctx, rec.Key())
		if errors.Is(err, volant.ErrNotFound) {
			return store.Creation(rec)(ctx, r, actor)
		}
		return store.Edit(rec.Key(), func(v *volant.Versions) error {
			v.Before = newest(append(slices.Clone(rec.Before), v.Before...))
			return nil
		})(ctx, r, actor)
	}
}

// newest keeps as many versions as the bounds allow.
func newest(vs []volant.MachineVersion) []volant.MachineVersion {
	size := 0
	for i, v := range vs {
		b, err := json.Marshal(v)
		if size += len(b); err != nil || i >= keptVersions || i > 0 && size > keptBytes {
			return vs[:i]
		}
	}
	return vs
}

// machineVersions lists the configs a machine has and had, the newest first.
func (s *Server) machineVersions(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	out := []api.MachineVersion{{Version: m.Version, Config: m.Config}}
	v, err := store.Load[volant.Versions](c.ctx(), s.Store, volant.RecordKey(volant.KindVersions, m.App, m.ID))
	if err != nil && !errors.Is(err, volant.ErrNotFound) {
		return err
	}
	if err == nil {
		for _, b := range v.Before {
			out = append(out, api.MachineVersion{Version: b.Version, Config: b.Config})
		}
	}
	reply(w, http.StatusOK, out)
	return nil
}

// settleRun adapts a machine's wish to its new config.
func settleRun(old, m *volant.Machine, awake bool) {
	had, has := len(old.Config.Services) > 0, len(m.Config.Services) > 0
	switch {
	case has && !had && m.Run == volant.RunOn:
		m.Run = volant.RunAuto // connections can wake it now
	case had && !has && m.Run == volant.RunAuto && awake:
		m.Run = volant.RunOn // nothing else keeps it awake any more
	}
}

// rest keeps a machine stopped until somebody asks for it.
func rest(m *volant.Machine) {
	m.Launch = volant.LaunchRest
	if m.Run == volant.RunOn {
		m.Run = volant.RunOff
	}
}
