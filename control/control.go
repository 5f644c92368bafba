// Package control is the HTTP API: who may, is it valid, write it down, ask the owner.
//
//	request ─► authenticate ─► authorize ─► handler ─► intent (store) or call (host)
//
// # Invariants
//
//   - Every handler authorizes through one function, grant; only /v1/health needs no token.
//   - Durable changes are records; only wake, sleep, restart, exec, signal and logs are calls to a host.
//   - Kinds of errors become HTTP statuses in one switch, fail. What has no kind is a 500, and its text
//     stays in our log.
//   - A write is seen by the next read on the same node: handlers wait for the catalog to hold it.
//   - Bodies are bounded: 1 MiB of JSON, a blob by the image store's limit.
//
// # Sources
//
// Paths and shapes of apps and machines: Fly's public Machines API (package api). Releases, scale,
// blobs, logs and why are Volant's own.
//
// # Not here
//
// What a machine does when its wish changes: package host. How a release comes about: package deploy.
package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/metrics"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// Machines is what the API asks of the hosts.
type Machines interface {
	// Start wakes a machine, a cordoned one too.
	Start(ctx context.Context, id volant.MachineID, by string) error
	// Sleep stops or suspends a machine, open connections or not.
	Sleep(ctx context.Context, id volant.MachineID, how string, e Ending) error
	Restart(ctx context.Context, id volant.MachineID, e Ending) error
	Signal(ctx context.Context, id volant.MachineID, sig int) error
	Exec(ctx context.Context, id volant.MachineID, e guest.Exec) (guest.Exit, error)
	// Events are a machine's history, the newest first; none where its host has forgotten it.
	Events(id volant.MachineID, limit int) []volant.Event
	Stats(ctx context.Context, id volant.MachineID) (guest.Stats, error)
	Processes(ctx context.Context, id volant.MachineID) ([]guest.Process, error)
	// OldLogs are the destroyed machines of an app whose logs are kept, newest first.
	OldLogs(app volant.AppID) []volant.MachineID
	// Logs calls fn for the last tail lines, all if it is negative, and with follow for each new one until ctx ends.
	Logs(ctx context.Context, id volant.MachineID, tail int, follow bool, fn func(guest.LogLine) error) error
	// Room is how many more machines of a size each region has room for.
	Room(g volant.Guest) map[volant.Region]int
	// Place reserves room for a new machine on a host and says which.
	Place(ctx context.Context, m *volant.Machine) (volant.NodeID, error)
}

// Ending says who ends an app, and how, where its config is not to say.
type Ending struct {
	By     string
	Signal int           // 0: as its config says
	Grace  time.Duration // 0: as its config says
}

// Images is the store of blobs and root disks. An organization sees the blobs that it has shown it has;
// AnyOrg sees all.
type Images interface {
	Has(org volant.OrgID, d volant.Digest) bool
	Put(ctx context.Context, org volant.OrgID, d volant.Digest, r io.Reader) error
	// Grant makes an image that is here the organization's as well.
	Grant(org volant.OrgID, d volant.Digest) error
	// Resolve makes sure that the image of a reference is here, and returns its digest.
	Resolve(ctx context.Context, p Pull, progress func(phase string, done, total int64)) (volant.Digest, error)
	// Prepare builds the root disk of a manifest's digest; it is quick when that exists.
	Prepare(ctx context.Context, d volant.Digest, progress func(phase string, done, total int64)) error
}

// Registry serves /v2/, what `docker push` speaks to.
type Registry interface {
	Serve(w http.ResponseWriter, r *http.Request, who RegistryCaller)
	// Unauthorized answers who is not known, in the way that Docker's tools understand.
	Unauthorized(w http.ResponseWriter, err error)
}

// Reasons answers why.
type Reasons interface {
	Query(ctx context.Context, q why.Query) ([]why.Record, error)
	Add(r why.Record)
}

// Traffic is what the proxy last said of an app.
type Traffic interface {
	Slots(app volant.AppID) map[volant.MachineID]int
	Waiting(app volant.AppID) int
}

// Addresses gives out addresses of the configured pools, given those in use.
type Addresses interface {
	Next(kind string, used []string) (string, error)
}

// Sealer seals what only machines and proxies may read, for one place each.
type Sealer interface {
	Seal(aad string, plain []byte) ([]byte, error)
	Open(aad string, sealed []byte) ([]byte, error)
	// Digest names a value without telling it.
	Digest(aad string, plain []byte) string
}

// Deps are the rooms and tools the API needs; all are required but Registry and Log.
type Deps struct {
	Store     store.Store
	Catalog   *catalog.Catalog
	Machines  Machines
	Images    Images
	Registry  Registry // nil: none
	Reasons   Reasons
	Traffic   Traffic
	Addresses Addresses
	Secrets   Sealer
	// Answers is the directory of answers of requests with an Idempotency-Key; in memory if empty.
	Answers string
	Domain  string // apps answer to NAME.Domain; empty: they have no names
	// Resolve asks the name server; net.DefaultResolver's if nil.
	Resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
	Nodes   func() []api.Node // the servers as their operator sees them
	// HostStatus is how the host of a node is, in the words of a machine's host_status; nil: ok.
	HostStatus func(volant.NodeID) string
	// Joining says by which key servers that join know this cluster, and where they ask; nil: none can join.
	Joining func() (cluster join.Fingerprint, at []string, err error)
	// Measure measures apps, and with own the node itself.
	Measure func(ctx context.Context, apps []*volant.App, own bool) *metrics.Sample
	CA      []byte        // certificate of the development CA, PEM; nil: none
	Region  volant.Region // of this node
	// Home is where machines of an app that are made by hand go unless they say; Region if nil.
	Home func(*volant.App) volant.Region
	// Forward says who answers a request in place of this server; nil, or a nil Handler: it does.
	Forward func() http.Handler
	Log     *slog.Logger // nil discards
}

// Server serves the API.
type Server struct {
	Deps
	mux     *http.ServeMux
	limits  *limiters
	answers *answers
}

// New returns a server of the API.
func New(d Deps) *Server {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Resolve == nil {
		d.Resolve = net.DefaultResolver.LookupNetIP
	}
	s := &Server{Deps: d, mux: http.NewServeMux(), limits: newLimiters(maxLimiters)}
	var err error
	if s.answers, err = openAnswers(d.Answers, maxAnswers); err != nil {
		d.Log.Warn("kept answers cannot be read", "err", err)
	}
	s.routes()
	return s
}

// Serve answers requests on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	end := context.AfterFunc(ctx, func() {
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(bound) != nil {
			_ = srv.Close() // requests which outlast the bound are cut
		}
	})
	defer end()
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return err
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Server", "Volant")
	if r.ContentLength != 0 {
		// A connection that cannot have a deadline has no slow client.
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyWithin))
	}
	if s.Forward != nil {
		if h := s.Forward(); h != nil {
			h.ServeHTTP(w, r)
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

// routes puts the table of routes into the mux.
func (s *Server) routes() {
	for _, r := range s.Routes() {
		s.mux.HandleFunc(r.Method+" "+r.Path, s.handle(r))
	}
	s.mux.HandleFunc("/v2", s.registry)
	s.mux.HandleFunc("/v2/", s.registry)
	s.mux.HandleFunc("/", s.handle(Route{Scope: string(scopeRead), Action: "none", handle: func(_ http.ResponseWriter, c *call) error {
		return volant.Errorf(volant.ErrNotFound, "%s %s is not part of the API", c.r.Method, c.r.URL.Path).
			WithRemedy("the API is under /v1; see the guide")
	}}))
}
