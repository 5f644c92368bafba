package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/volant-edge/volant"
)

// Auth is a user's right to pull from one registry. It lives as long as the request it came with.
type Auth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identity_token,omitempty"` // of an OAuth flow
	RegistryToken string `json:"registry_token,omitempty"` // a bearer token, sent as it is
}

// String keeps a password out of messages and logs.
func (a Auth) String() string {
	if a == (Auth{}) {
		return "anonymous"
	}
	return "credentials of " + a.Username
}

// GoString is String.
func (a Auth) GoString() string { return a.String() }

// Remote reads images from registries. Its zero value works.
type Remote struct {
	Auth     Auth
	Insecure []string          // registries, HOST or HOST:PORT, that may be spoken to without TLS; localhost always may
	Base     http.RoundTripper // nil: NewTransport(nil)

	Stall  time.Duration // how long a registry may be silent; 0 means 60 s
	Retry  time.Duration // the first pause before a request is made again; 0 means 1 s
	Within time.Duration // for everything but layers; 0 means 3 min
}

func (r Remote) withDefaults() Remote {
	if r.Stall == 0 {
		r.Stall = time.Minute
	}
	if r.Retry == 0 {
		r.Retry = time.Second
	}
	if r.Within == 0 {
		r.Within = 3 * time.Minute
	}
	if r.Base == nil {
		r.Base = NewTransport(nil)
	}
	return r
}

// Open finds the image that ref names for our platform in its registry, and reads its manifest and
// config. Layers are fetched by Source.Open; ctx ends them too.
func (r Remote) Open(ctx context.Context, ref string) (*Source, error) {
	r = r.withDefaults()
	parsed, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	f, err := r.connect(ctx, parsed)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", parsed, err)
	}
	s := &Source{Ref: ref, files: f}
	if err := f.load(s, parsed); err != nil {
		return nil, fmt.Errorf("image %s: %w", parsed, errors.Join(f.explain(err), f.Close()))
	}
	return s, nil
}

// connect learns how the registry wants to be asked: by which scheme, with which token.
func (r Remote) connect(ctx context.Context, ref Ref) (*fetcher, error) {
	var opts []name.Option
	if r.plain(ref.Registry) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(ref.Registry, opts...)
	if err != nil {
		return nil, volant.Invalidf("%q is no name of a registry", ref.Registry).WithRemedy("write HOST or HOST:PORT")
	}
	f := &fetcher{r: r, ref: ref, docs: make(map[volant.Digest][]byte)}
	f.ctx, f.cancel = context.WithCancel(ctx)
	auth := authn.Anonymous
	if a := r.Auth; a != (Auth{}) {
		auth = authn.FromConfig(authn.AuthConfig{
			Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		})
	}
	base := &guarded{base: r.Base, plain: r.plain, stall: r.Stall}
	setup, cancel := context.WithTimeout(f.ctx, r.Within)
	defer cancel()
	scope := reg.Repo(ref.Repository).Scope(transport.PullScope)
	err = f.again(setup, func() error {
		rt, err := transport.NewWithContext(setup, reg, auth, base, []string{scope})
		f.http = &http.Client{Transport: rt}
		return err
	})
	if err != nil {
		f.cancel()
		return nil, f.explain(err)
	}
	f.base = reg.Scheme() + "://" + reg.RegistryStr() + "/v2/" + ref.Repository // the transport knows which scheme works
	return f, nil
}

// plain says whether a registry may be spoken to without TLS.
func (r Remote) plain(host string) bool {
	if isLocalhost(host) {
		return true
	}
	for _, h := range r.Insecure {
		if strings.EqualFold(h, host) {
			return true
		}
	}
	return false
}

// load reads manifest and config.
func (f *fetcher) load(s *Source, ref Ref) error {
	ctx, cancel := context.WithTimeout(f.ctx, f.r.Within)
	defer cancel()
	d, raw, kind, err := f.manifest(ctx, ref.reference())
	if err != nil {
		return err
	}
	if kind.IsIndex() {
		var all []candidate
		read := func(d volant.Digest) ([]byte, error) {
			_, raw, _, err := f.manifest(ctx, string(d))
			return raw, err
		}
		if err := collect(read, raw, "", 0, &all); err != nil {
			return err
		}
		if d, err = choose(all, ""); err != nil {
			return err
		}
		if d, raw, _, err = f.manifest(ctx, string(d)); err != nil {
			return err
		}
	}
	m, config, err := parseManifest(d, raw)
	if err != nil {
		return err
	}
	conf, err := readDocument(f.document(ctx, m), config)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := m.parseConfig(conf); err != nil {
		return fmt.Errorf("config %s: %w", config, err)
	}
	f.docs = map[volant.Digest][]byte{d: raw, config: conf}
	s.Digest, s.Blobs = d, m.Blobs
	f.sizes = make(map[volant.Digest]int64)
	for _, b := range m.Blobs {
		f.sizes[b.Digest] = b.Size
	}
	return nil
}

// document opens the config's blob, of the size that the manifest says.
func (f *fetcher) document(ctx context.Context, m Manifest) opener {
	return func(d volant.Digest) (io.ReadCloser, int64, error) {
		for _, b := range m.Blobs {
			if b.Digest == d {
				return f.reader(ctx, d, b.Size), b.Size, nil
			}
		}
		return nil, 0, volant.Errorf(volant.ErrNotFound, "blob %s is missing", d)
	}
}

var manifestTypes = []string{
	string(types.OCIImageIndex), string(types.OCIManifestSchema1), string(types.DockerManifestList), string(types.DockerManifestSchema2),
	string(types.DockerManifestSchema1Signed), string(types.DockerManifestSchema1), // to be refused by name
}

// manifest gets a manifest or index by tag or digest, and checks its digest.
func (f *fetcher) manifest(ctx context.Context, what string) (volant.Digest, []byte, types.MediaType, error) {
	var raw []byte
	var head http.Header
	err := f.again(ctx, func() error {
		resp, err := f.get(ctx, "/manifests/"+what, http.Header{"Accept": {strings.Join(manifestTypes, ", ")}})
		if err != nil {
			return err
		}
		defer resp.Body.Close() //nolint:errcheck // read to its end or given up
		head = resp.Header
		raw, err = io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
		return err
	})
	if err != nil {
		return "", nil, "", err
	}
	if len(raw) > maxDocument {
		return "", nil, "", volant.Invalidf("the manifest is larger than %s", size(maxDocument)).WithRemedy("check that it is an image")
	}
	got := DigestOf(raw)
	if want := volant.Digest(what); want.Valid() && want != got {
		return "", nil, "", wrongDigest("manifest", want, got)
	}
	if want := volant.Digest(head.Get("Docker-Content-Digest")); want.Valid() && want != got {
		return "", nil, "", wrongDigest("manifest", want, got)
	}
	kind := MediaType(raw, head.Get("Content-Type"))
	if kind == types.DockerManifestSchema1 || kind == types.DockerManifestSchema1Signed {
		return "", nil, "", oldSchema()
	}
	return got, raw, kind, nil
}

func oldSchema() error {
	return volant.Invalidf("the image is of Docker's first format (schema 1), which is not supported").
		WithRemedy("push it again with a present-day tool: `docker pull` and `docker push` of any Docker since 2017 do")
}

func wrongDigest(what string, want, got volant.Digest) error {
	return volant.Errorf(volant.ErrUnavailable, "the registry was asked for the %s %s and sent %s", what, string(want), string(got)).
		WithRemedy("try again; if it stays so, the registry, or a proxy before it, is damaged")
}

// MediaType is what a manifest is, by its own word or else by what is in it.
func MediaType(raw []byte, header string) types.MediaType {
	var m struct {
		Schema    int             `json:"schemaVersion"`
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		FSLayers  json.RawMessage `json:"fsLayers"`
	}
	header, _, _ = strings.Cut(header, ";")
	if json.NewDecoder(bytes.NewReader(raw)).Decode(&m) != nil {
		return types.MediaType(header)
	}
	switch {
	case m.Schema == 1 || m.FSLayers != nil:
		return types.DockerManifestSchema1
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return types.OCIImageIndex
	default:
		return types.OCIManifestSchema1
	}
}
