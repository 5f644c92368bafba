package registry

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
)

// Caller is who asks, as found out before.
type Caller struct {
	Org  volant.OrgID // of the token
	Any  bool         // acts for all organizations
	Only string       // the one repository it may use; empty: all of its organization
	Push bool         // may change
	Name string       // for the audit
}

// Images keeps blobs.
type Images interface {
	// Owns says whether an organization has a blob, on this node or another.
	Owns(org volant.OrgID, d volant.Digest) bool
	// Bring makes sure that a blob is on this node.
	Bring(ctx context.Context, d volant.Digest) error
	PutFor(ctx context.Context, org volant.OrgID, d volant.Digest, r io.Reader) error
	Blob(d volant.Digest) (io.ReadCloser, int64, error)
	Document(d volant.Digest) ([]byte, error)
	// Begin starts an upload, if the organization may have more.
	Begin(org volant.OrgID) (*image.Upload, error)
	Grant(org volant.OrgID, d volant.Digest) error
}

// Tags keeps which manifest a name and tag stand for.
type Tags interface {
	Tag(org volant.OrgID, repository, tag string) (*volant.Image, bool)
	// Tags are all of an organization.
	Tags(org volant.OrgID) []*volant.Image
	SetTag(ctx context.Context, actor string, i volant.Image) error
	RemoveTag(ctx context.Context, actor string, i *volant.Image) error
}

// Bounds.
const (
	maxManifest   = 4 << 20
	maxUploads    = 64   // of one organization at a time
	maxTags       = 5000 // of one organization
	uploadIdle    = time.Hour
	stalled       = time.Minute // how long a body may be silent
	defaultPage   = 1000
	maxNameLength = 255
)

// Registry serves /v2/.
type Registry struct {
	images Images
	tags   Tags
	log    *slog.Logger

	mu      sync.Mutex // guards uploads
	uploads map[string]*upload
}

// upload is one that goes on over several requests.
type upload struct {
	mu   sync.Mutex // held by the request that appends
	up   *image.Upload
	org  volant.OrgID
	repo string
	used time.Time // guarded by Registry.mu
}

// New returns a registry. A nil log discards.
func New(images Images, tags Tags, log *slog.Logger) *Registry {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Registry{images: images, tags: tags, log: log, uploads: make(map[string]*upload)}
}

// request is one request to a repository.
type request struct {
	*http.Request
	w    http.ResponseWriter
	who  Caller
	org  volant.OrgID // of the repository
	repo string
	name string // the repository as the caller wrote it
	rest string // what follows the name's kind of thing
}

// view is as whom the caller looks at blobs.
func (r *request) view() volant.OrgID {
	if r.who.Any {
		return image.AnyOrg
	}
	return r.org
}

// Serve answers one request of a caller.
func (g *Registry) Serve(w http.ResponseWriter, r *http.Request, who Caller) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := g.serve(w, r, who); err != nil {
		g.fail(w, r, err)
	}
}

func (g *Registry) serve(w http.ResponseWriter, r *http.Request, who Caller) error {
	path := strings.TrimPrefix(r.URL.Path, "/v2")
	switch path {
	case "", "/":
		return reply(w, http.StatusOK, struct{}{})
	case "/_catalog":
		return g.catalog(w, r, who)
	}
	req := &request{Request: r, w: w, who: who}
	serve, err := g.route(req, strings.TrimPrefix(path, "/"))
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !who.Push {
		return denied("the token may read, not push").WithRemedy("use a token with the scope deploy")
	}
	return serve(req)
}

// kinds are what a repository has, and who serves it. The last of them in a path ends the name.
func (g *Registry) route(req *request, path string) (func(*request) error, error) {
	at, kind := -1, ""
	for _, k := range []string{"/blobs/", "/manifests/", "/tags/", "/referrers/"} {
		if i := strings.LastIndex(path, k); i > at {
			at, kind = i, k
		}
	}
	if at < 0 {
		return nil, oops(http.StatusNotFound, "NAME_UNKNOWN", "%s is no path of a registry", req.URL.Path).WithRemedy("see the OCI distribution specification")
	}
	req.name, req.rest = path[:at], path[at+len(kind):]
	if err := req.resolve(); err != nil {
		return nil, err
	}
	switch {
	case kind == "/manifests/":
		return g.manifest, nil
	case kind == "/tags/" && req.rest == "list":
		return g.list, nil
	case kind == "/blobs/" && strings.HasPrefix(req.rest, "uploads/"):
		req.rest = strings.TrimPrefix(req.rest, "uploads/")
		return g.upload, nil
	case kind == "/blobs/" && req.rest != "uploads":
		return g.blob, nil
	case kind == "/blobs/":
		req.rest = ""
		return g.upload, nil
	}
	return nil, oops(http.StatusNotFound, "UNSUPPORTED", "%s is not served", req.URL.Path).WithRemedy("push, pull and list tags")
}

var (
	nameRule = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRule  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

// Split takes a repository's name apart. Names without an organization are of own.
func Split(name string, own volant.OrgID) (org volant.OrgID, repository string) {
	if own == image.AnyOrg {
		own = volant.OrgPersonal
	}
	if first, rest, ok := strings.Cut(name, "/"); ok {
		return volant.OrgID(first), rest
	}
	return own, name
}

// resolve finds the organization that the name is of, and whether the caller may come near.
func (r *request) resolve() error {
	if len(r.name) > maxNameLength || !nameRule.MatchString(r.name) {
		return oops(http.StatusBadRequest, "NAME_INVALID", "%q is no name of a repository", r.name).
			WithRemedy("use lower-case letters, digits and inner . _ -, as NAME or ORGANIZATION/NAME")
	}
	own := r.who.Org
	if r.who.Any {
		own = image.AnyOrg
	}
	r.org, r.repo = Split(r.name, own)
	if !r.who.Any && r.org != r.who.Org {
		return denied("the token is not of organization "+string(r.org)).
			WithRemedy("push to %s/NAME, or use a token of that organization", r.who.Org)
	}
	if r.who.Only != "" && r.repo != r.who.Only {
		return denied("the token is for the app "+r.who.Only+" alone").WithRemedy("push to %s, or use a token of the organization", r.who.Only)
	}
	return nil
}

// sweep cancels uploads that nobody goes on with.
func (g *Registry) sweepLocked(now time.Time) {
	for id, u := range g.uploads {
		if now.Sub(u.used) > uploadIdle && u.mu.TryLock() {
			u.up.Cancel()
			u.mu.Unlock()
			delete(g.uploads, id)
		}
	}
}

// wantDigest reads a digest of a path or query.
func wantDigest(s string) (volant.Digest, error) {
	d := volant.Digest(s)
	if !d.Valid() {
		return "", oops(http.StatusBadRequest, "DIGEST_INVALID", "%q is no sha256 digest", s).WithRemedy("use sha256: and 64 hex digits")
	}
	return d, nil
}

// steady is a request's body whose sender may take its time, but not stop.
type steady struct {
	r  io.Reader
	rc *http.ResponseController
}

func (s steady) Read(b []byte) (int, error) {
	_ = s.rc.SetReadDeadline(time.Now().Add(stalled)) // a connection that cannot have one has no slow client
	n, err := s.r.Read(b)
	if errors.Is(err, io.EOF) {
		_ = s.rc.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (r *request) body() io.Reader { return steady{r.Body, http.NewResponseController(r.w)} }

// slowly copies to a client that may take its time, but not stop.
func slowly(w http.ResponseWriter, r io.Reader) error {
	rc := http.NewResponseController(w)
	defer func() { _ = rc.SetWriteDeadline(time.Time{}) }() // as above
	b := make([]byte, 256<<10)
	for {
		n, err := r.Read(b)
		if n > 0 {
			_ = rc.SetWriteDeadline(time.Now().Add(stalled))
			if _, err := w.Write(b[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
