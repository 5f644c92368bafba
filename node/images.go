package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/image"
)

const (
	pullsAtOnce = 8
	pullWithin  = time.Hour
	ownsWithin  = 5 * time.Second // to ask all other nodes
)

// images is the image store as control asks for it.
type images struct {
	*image.Store
	cfg   ImageConfig
	data  string        // data directory, where the operator may put registries.json
	slots chan struct{} // pulls that run

	listen string                                                               // the API's address, where the own registry is too
	tag    func(org volant.OrgID, repository, tag string) (*volant.Image, bool) // of the own registry
	keep   func(volant.Digest) bool                                             // what a tag, release or machine needs

	others  *Others // nil: there are no other nodes
	sources func(volant.Digest) []source
}

// source is where an image was pulled from, and for whom.
type source struct {
	ref string
	org volant.OrgID
}

func newImages(s *image.Store, cfg ImageConfig, data string) *images {
	return &images{
		Store: s, cfg: cfg, data: data, slots: make(chan struct{}, pullsAtOnce),
		tag:  func(volant.OrgID, string, string) (*volant.Image, bool) { return nil, false },
		keep: func(volant.Digest) bool { return true }, sources: func(volant.Digest) []source { return nil },
	}
}

// Has says whether an organization has a blob, here or on another node.
func (s *images) Has(org volant.OrgID, d volant.Digest) bool { return s.Owns(org, d) }

// Owns is Has: what is on another node comes when it is needed.
func (s *images) Owns(org volant.OrgID, d volant.Digest) bool {
	if s.Store.Owns(org, d) {
		return true
	}
	if s.others == nil || !d.Valid() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), ownsWithin)
	defer cancel()
	return s.others.owns(ctx, org, d)
}

// origin gets an image that no node has from where it was pulled once.
func (s *images) origin(ctx context.Context, d volant.Digest, progress func(image.Progress)) error {
	err := errors.ErrUnsupported
	for _, src := range s.sources(d) {
		if volant.Digest(src.ref).Valid() || image.IsFile(src.ref) { // it was uploaded
			continue
		}
		ref, perr := image.ParseRef(src.ref)
		if perr != nil || s.isOwn(ref.Registry) {
			continue
		}
		ref.Tag, ref.Digest = "", d
		var got volant.Digest
		got, err = s.pull(ctx, ref, control.Pull{Ref: ref.String(), Org: src.org}, progress)
		if err == nil && got == d {
			return nil
		}
	}
	return err
}

func (s *images) Put(ctx context.Context, org volant.OrgID, d volant.Digest, r io.Reader) error {
	if !s.Store.Owns(org, d) {
		if err := s.admit(org); err != nil {
			return err
		}
	}
	return s.PutFor(ctx, org, d, r)
}

func (s *images) Prepare(ctx context.Context, d volant.Digest, progress func(phase string, done, total int64)) error {
	if _, err := s.Convert(ctx, d, tell(progress)); err != nil {
		return err
	}
	if s.others == nil {
		return nil
	}
	s.others.spread(ctx, d)
	return s.Complete(ctx, d, tell(progress)) // its root disk may have been here alone
}

func tell(progress func(phase string, done, total int64)) func(image.Progress) {
	return func(p image.Progress) {
		if progress != nil {
			progress(p.Phase, p.Done, p.Total)
		}
	}
}

// Resolve pulls an image from its registry. What is here already is not pulled again, but the registry
// is asked each time what a tag means.
func (s *images) Resolve(ctx context.Context, p control.Pull, progress func(phase string, done, total int64)) (volant.Digest, error) {
	ref, err := image.ParseRef(p.Ref)
	if err != nil {
		return "", err
	}
	if s.isOwn(ref.Registry) {
		return s.ofOwn(ctx, ref, p)
	}
	return s.pull(ctx, ref, p, tell(progress))
}

// pull pulls an image from another registry than our own.
func (s *images) pull(ctx context.Context, ref image.Ref, p control.Pull, progress func(image.Progress)) (volant.Digest, error) {
	if err := s.admit(p.Org); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, pullWithin)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return "", fmt.Errorf("image %s: wait for other pulls: %w", ref, ctx.Err())
	}
	r := image.Remote{Insecure: s.cfg.Insecure, Auth: image.Auth(p.Auth)}
	if p.Auth == (api.RegistryAuth{}) {
		var err error
		if r.Auth, err = s.credentials(p.Org, ref.Registry); err != nil {
			return "", err
		}
	}
	if !p.Anywhere && !slices.Contains(s.cfg.Private, ref.Registry) {
		r.Base = image.NewTransport(outside)
	}
	return s.Pull(ctx, p.Org, p.Ref, r, progress)
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // of carriers' NAT, and of many private networks

// outside refuses addresses of the server's own networks, into which its users have no way of their own.
func outside(a netip.AddrPort) error {
	ip := a.Addr()
	if !ip.IsGlobalUnicast() || ip.IsPrivate() || shared.Contains(ip) {
		return volant.Errorf(volant.ErrForbidden, "the registry is at %s, in the server's own network", ip).
			WithRemedy("deploy with --local, which pulls on your machine; or the server's operator lists the registry in image.private_registries")
	}
	return nil
}

var orgFile = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

// credentials are those that the operator gave the server for a registry: registries/ORG.json for one
// organization, registries.json for all, both in the form of Docker's config.json.
func (s *images) credentials(org volant.OrgID, registry string) (image.Auth, error) {
	files := []string{"registries.json"}
	if orgFile.MatchString(string(org)) {
		files = []string{"registries/" + string(org) + ".json", "registries.json"}
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(s.data, f))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return image.Auth{}, err
		}
		var c struct {
			Auths map[string]authn.AuthConfig `json:"auths"`
		}
		if err := json.Unmarshal(b, &c); err != nil {
			return image.Auth{}, volant.Errorf(volant.ErrUnavailable, "the server's %s cannot be read", f).
				WithRemedy("its operator mends it: {\"auths\": {\"REGISTRY\": {\"username\": …, \"password\": …}}}")
		}
		keys := []string{registry, "https://" + registry}
		if registry == "docker.io" {
			keys = append(keys, name.DefaultRegistry, authn.DefaultAuthKey)
		}
		for _, k := range keys {
			if a, ok := c.Auths[k]; ok {
				return image.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}, nil
			}
		}
	}
	return image.Auth{}, nil
}

// hostImages is the same for the host, whose word for a root disk is its own.
type hostImages struct{ *image.Store }

func (s hostImages) Rootfs(ctx context.Context, d volant.Digest) (host.Rootfs, error) {
	r, err := s.Store.Rootfs(ctx, d)
	c := r.Config
	return host.Rootfs{
		Path: r.Path, Type: r.Type, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env,
		User: c.User, WorkDir: c.WorkingDir, StopSignal: c.StopSignal,
	}, err
}
