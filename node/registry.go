package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/registry"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// v2 is the registry as control asks for it.
type v2 struct{ *registry.Registry }

func (v v2) Serve(w http.ResponseWriter, r *http.Request, who control.RegistryCaller) {
	v.Registry.Serve(w, r, registry.Caller(who))
}

// tags keeps tags in the intent.
type tags struct {
	store  store.Store
	cat    *catalog.Catalog
	why    why.Log
	others *Others // nil: there are no other nodes
}

func (t tags) Tag(org volant.OrgID, repository, tag string) (*volant.Image, bool) {
	return t.cat.Snapshot().Image(org, repository, tag)
}

func (t tags) Tags(org volant.OrgID) []*volant.Image {
	var all []*volant.Image
	for i := range t.cat.Snapshot().Images() {
		if i.Org == org {
			all = append(all, i)
		}
	}
	return all
}

// SetTag writes a tag, whether it is new, moved or was removed.
func (t tags) SetTag(ctx context.Context, actor string, i volant.Image) error {
	i.Kind = volant.KindImage
	for range 8 { // somebody else may push it at the same moment
		_, rev, err := store.Update(ctx, t.store, actor, i.Key(), func(old *volant.Image) error {
			old.Digest, old.Size = i.Digest, i.Size
			return nil
		})
		if errors.Is(err, volant.ErrNotFound) {
			rec := i
			rev, err = store.Apply(ctx, t.store, actor, store.Claim(&rec))
		}
		if errors.Is(err, volant.ErrExists) || errors.Is(err, volant.ErrConflict) {
			continue
		}
		if err != nil {
			return err
		}
		if t.others != nil {
			t.others.spread(ctx, i.Digest)
		}
		t.audit(actor, &i, "image_tagged", i.Repository+":"+i.Tag+" is "+i.Digest.String()+" now")
		return t.cat.Wait(ctx, rev)
	}
	return volant.Errorf(volant.ErrConflict, "the tag %s is being moved by others", i.Tag).WithRemedy("push again")
}

func (t tags) RemoveTag(ctx context.Context, actor string, i *volant.Image) error {
	rev, err := store.Delete(ctx, t.store, actor, i.Key())
	if errors.Is(err, volant.ErrNotFound) {
		return nil // somebody else did
	}
	if err != nil {
		return err
	}
	t.audit(actor, i, "image_untagged", i.Repository+":"+i.Tag+" was removed")
	return t.cat.Wait(ctx, rev)
}

func (t tags) audit(actor string, i *volant.Image, rule, text string) {
	t.why.Add(why.Record{Time: time.Now(), Kind: why.Change, Org: i.Org, Rule: rule, Text: text, Attrs: map[string]string{"actor": actor}})
}

// ownRegistry is the name by which the server knows its own registry, whatever its address.
const ownRegistry = "registry.volant"

// isOwn says whether a registry's name means this server.
func (s *images) isOwn(name string) bool {
	if name == ownRegistry || name == s.listen {
		return true
	}
	_, port, err := net.SplitHostPort(s.listen)
	host, p, err2 := net.SplitHostPort(name)
	return err == nil && err2 == nil && port == p && port != "0" && (host == "localhost" || host == "127.0.0.1" || host == "::1")
}

// ofOwn finds an image in the server's own registry.
func (s *images) ofOwn(ctx context.Context, ref image.Ref, p control.Pull) (volant.Digest, error) {
	org, repo := registry.Split(ref.Repository, p.Org)
	gone := volant.Errorf(volant.ErrNotFound, "this server's registry has no image %s", strings.TrimPrefix(ref.String(), ref.Registry+"/")).
		WithRemedy("push it with `volant image push`; see `volant image list`")
	if org != p.Org && !p.Anywhere {
		return "", gone // others' images are not there
	}
	d := ref.Digest
	if d == "" {
		t, ok := s.tag(org, repo, ref.Tag)
		if !ok {
			return "", gone
		}
		d = t.Digest
	} else if !s.Owns(org, d) {
		return "", gone
	}
	if s.others != nil {
		if err := s.Complete(ctx, d, nil); err != nil {
			return "", err
		}
	}
	if p.Org != org {
		if err := s.Grant(p.Org, d); err != nil {
			return "", err
		}
	}
	return s.ForPlatform(d)
}

// Begin starts an upload, if the organization's quota allows it.
func (s *images) Begin(org volant.OrgID) (*image.Upload, error) {
	if err := s.admit(org); err != nil {
		return nil, err
	}
	return s.Store.Begin()
}

// admit says whether an organization may have more blobs. One that is over its quota first loses what
// nothing of it names any more.
func (s *images) admit(org volant.OrgID) error {
	limit := int64(s.cfg.QuotaMB) << 20
	if org == image.AnyOrg || limit <= 0 {
		return nil
	}
	used, err := s.OrgBytes(org)
	if err != nil || used < limit {
		return err
	}
	if err := s.Prune(org, s.keep); err != nil {
		return err
	}
	if used, err = s.OrgBytes(org); err != nil || used < limit {
		return err
	}
	return volant.Errorf(volant.ErrNoCapacity, "organization %s has %d MB of images, and its quota is %d MB", org, used>>20, s.cfg.QuotaMB).
		WithRemedy("remove some with `volant image rm` and try again an hour later; or the server's operator sets image.quota_mb higher")
}
