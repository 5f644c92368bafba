package control

import (
	"maps"
	"net/http"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/store"
)

func (s *Server) getMetadata(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	meta := m.Config.Metadata
	if meta == nil {
		meta = map[string]string{}
	}
	reply(w, http.StatusOK, meta)
	return nil
}

func (s *Server) getMetadataKey(w http.ResponseWriter, c *call) error {
	_, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	key := c.r.PathValue("key")
	v, ok := m.Config.Metadata[key]
	if !ok {
		return volant.Errorf(volant.ErrNotFound, "machine %s has no metadata %q", m.ID, key)
	}
	reply(w, http.StatusOK, api.MetadataValue{Value: v})
	return nil
}

// setMetadata replaces all metadata of a machine, or with PATCH those that the body names.
func (s *Server) setMetadata(whole bool) handler {
	return func(w http.ResponseWriter, c *call) error {
		var in api.SetMetadata
		if err := c.read(w, &in); err != nil {
			return err
		}
		return s.editMetadata(w, c, in.MachineVersion, in.UpdatedAt, func(meta map[string]string) {
			if whole {
				clear(meta)
			}
			for k, v := range in.Metadata {
				setOrDrop(meta, k, v)
			}
		})
	}
}

func setOrDrop(meta map[string]string, key string, v *string) {
	if v == nil || *v == "" {
		delete(meta, key)
	} else {
		meta[key] = *v
	}
}

func (s *Server) setMetadataKey(w http.ResponseWriter, c *call) error {
	var in api.SetMetadataValue
	if err := c.read(w, &in); err != nil {
		return err
	}
	return s.editMetadata(w, c, "", in.UpdatedAt, func(meta map[string]string) { setOrDrop(meta, c.r.PathValue("key"), in.Value) })
}

func (s *Server) dropMetadataKey(w http.ResponseWriter, c *call) error {
	return s.editMetadata(w, c, "", "", func(meta map[string]string) { delete(meta, c.r.PathValue("key")) })
}

// editMetadata changes a machine's metadata. Its version stays, and nothing of it runs again.
func (s *Server) editMetadata(w http.ResponseWriter, c *call, version, updatedAt string, edit func(map[string]string)) error {
	a, m, _, err := s.machine(c)
	if err != nil {
		return err
	}
	if gone(m) {
		return destroyedError(m)
	}
	seen, err := parseTime("updated_at", updatedAt)
	if err != nil {
		return err
	}
	err = s.commit(c, m, store.Edit(m.Key(), func(m *volant.Machine) error {
		if err := isVersion(m, version); err != nil {
			return err
		}
		if !seen.IsZero() && !sameTime(m.Updated, seen) {
			return volant.Errorf(volant.ErrPrecondition, "machine %s was changed at %s, after %s", m.ID, m.Updated.Format(time.RFC3339Nano), updatedAt).
				WithRemedy("read it again, and send its updated_at")
		}
		next := maps.Clone(m.Config.Metadata)
		if next == nil {
			next = map[string]string{}
		}
		edit(next)
		m.Config.Metadata = next
		return checkTexts(&m.Config)
	}))
	if err != nil {
		return err
	}
	s.audit(c, a.Org, a.App, volant.MachineID(m.ID), "metadata_changed", "machine "+m.ID+": its metadata was changed")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// isVersion says that a machine is no longer of the version that the caller has seen, or nil.
func isVersion(m *volant.Machine, seen string) error {
	if seen == "" || seen == m.Version {
		return nil
	}
	return volant.Errorf(volant.ErrPrecondition, "machine %s has version %s, not %s: somebody else changed its config", m.ID, m.Version, seen).
		WithRemedy("read it again, and send its present version")
}

// sameTime compares as exactly as the caller wrote: clients send whole seconds too.
func sameTime(t, seen time.Time) bool {
	return t.Equal(seen) || seen.Nanosecond() == 0 && t.Truncate(time.Second).Equal(seen)
}

func parseTime(what, v string) (time.Time, error) {
	if v == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return t, volant.Invalidf("%s=%q: use a time such as %s", what, v, "2006-01-02T15:04:05Z")
	}
	return t, nil
}
