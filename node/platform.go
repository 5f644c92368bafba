package node

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/deploy"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/image"
	"github.com/volant-edge/volant/internal/perapp"
	"github.com/volant-edge/volant/mesh"
	"github.com/volant-edge/volant/microvm"
	"github.com/volant-edge/volant/peer"
	"github.com/volant-edge/volant/registry"
	"github.com/volant-edge/volant/scale"
	"github.com/volant-edge/volant/schedule"
	"github.com/volant-edge/volant/secret"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/why"
)

// Parts are what a Platform is made of: a server's are real, a test's may be fakes.
type Parts struct {
	Node    volant.NodeID
	Region  volant.Region
	Name    string
	Roles   []string // until the node's record is known, which then says; all if empty
	Joined  bool     // the node's record was written when it joined: this is not the first server
	Version string
	Epoch   uint64 // grows with each start
	Token   string // the root token

	Store store.Store
	Copy  store.Reader // what is read: the local copy of the store
	Down  bool         // the store is down; start without writing
	// Known is what the copy holds at the start.
	Known store.Revision

	Engine  microvm.Engine
	Host    host.Config
	Images  host.Images
	Net     host.Net
	Cgroups host.Cgroups

	Uploads   control.Images
	Blobs     registry.Images // nil: no registry
	Stored    *image.Store    // that other nodes read; nil: none do
	Others    *Others         // that Stored gets blobs from
	Addresses control.Addresses
	Secrets   *secret.Box  // opens and seals secrets and private keys
	Domain    string       // apps have names below it; DefaultDomain
	CA        *cert.Issued // signs for those names; nil: nobody does
	Answers   string       // directory of answers of requests with an Idempotency-Key
	// Resolve asks the name server; net.DefaultResolver's if nil.
	Resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
	Proxy   func(ctx context.Context) (Link, func(), error) // finds or starts a proxy
	Reasons Reasons
	// Local makes addresses of apps local to this server; nil where all are.
	Local func(ctx context.Context, addrs []netip.Addr) error
	// Dial connects for checks; the kernel's TCP if nil.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Mesh is this node's address in the mesh; invalid: it is alone. PeerListen and PeerDial replace the kernel's TCP
	// for calls between nodes.
	Mesh       netip.Addr
	PeerListen func(ctx context.Context, at netip.AddrPort) (net.Listener, error)
	PeerDial   func(ctx context.Context, network, addr string) (net.Conn, error)
	MeshStatus func(ctx context.Context) (mesh.Status, error) // of its end; nil: none
	// JoinListen listens for servers that join, which reach it at Endpoint; nil: none can.
	JoinListen func(ctx context.Context) (net.Listener, error)
	Endpoint   netip.AddrPort
	// JoinDial connects to other nodes' JoinListen; the kernel's TCP if nil.
	JoinDial    func(ctx context.Context, network, addr string) (net.Conn, error)
	StoreDown   func() error                                     // why the store cannot be reached; nil: nobody knows
	Members     func(ctx context.Context) ([]etcd.Member, error) // of the store; nil: it has none of its own
	Stores      []string                                         // URLs of the intent's etcd where that is not of control nodes
	StorePrefix string                                           // of all keys there
	Pools       EdgeConfig                                       // that Addresses gives out of
	Log         *slog.Logger                                     // nil discards
}

// Reasons keeps the reasons of decisions.
type Reasons interface {
	why.Log
	Query(q why.Query) ([]why.Record, error)
}

// Platform is the rooms of one node, joined.
type Platform struct {
	Parts
	start   time.Time
	cat     *catalog.Catalog
	host    *host.Host
	fleet   *fleet
	traffic traffic
	edge    *edge
	scaler  *scale.Scaler
	deploys *deploy.Deployer
	keeper  *schedule.Keeper
	holder  *perapp.Holder
	terms   *store.Terms
	api     *control.Server
	holding *holding
	names   *names
	known   *known
	telling *telling
	noticed chan struct{} // 1 deep: something was said of another node
	calls   *peer.Client
	peers   *peer.Server
	// forwards carries requests to the API on to control nodes.
	forwards http.RoundTripper
	ready    chan struct{}

	members  atomic.Pointer[[]etcd.Member] // of the store, as they were seen last
	expelled atomic.Bool                   // this node was removed: the proxy's table stays empty
}

// NewPlatform builds the rooms and joins them; nothing runs before Run.
func NewPlatform(parts Parts) (*Platform, error) {
	p := &Platform{Parts: parts, start: time.Now(), holding: newHolding(), ready: make(chan struct{})}
	if p.Log == nil {
		p.Log = slog.New(slog.DiscardHandler)
	}
	if len(p.Roles) == 0 {
		p.Roles = allRoles()
	}
	p.names = &names{domain: cmp.Or(p.Domain, DefaultDomain), issued: p.CA, box: p.Secrets, why: p.Reasons, log: p.Log}
	p.cat = catalog.New(catalog.Config{Log: p.Log})
	p.newPeers()
	p.known, p.noticed = newKnown(p.Node), make(chan struct{}, 1)
	p.edge = newEdge(p.Proxy, p.heard(), p.proxyLost, p.proxyLinked, p.Log)
	p.telling = newTelling(p.Node, p.Epoch, p.edge.now, p.room, p.isPast, p.Log)
	p.Host.Node, p.Host.Region, p.Host.Epoch = p.Node, p.Region, p.Epoch
	var err error
	p.host, err = host.New(p.Host, host.Deps{
		Engine: p.Engine, Images: p.Images, Net: p.Net, Cgroups: p.Cgroups, Seal: p.edge,
		Publish: p.publishHave, Why: p.Reasons, Log: p.Log, Open: openSession, App: p.appInside, Dial: p.Dial,
	})
	if err != nil {
		return nil, err
	}
	hosts := &hosts{self: p.Node, local: localHost{p.host}, cat: p.cat, known: p.known}
	if p.Mesh.IsValid() {
		hosts.calls = p.calls
	}
	p.fleet = &fleet{
		node: p.Node, region: p.Region, store: p.Store, cat: p.cat, hosts: hosts, known: p.known, traffic: &p.traffic, ownRoom: p.room, why: p.Reasons, acts: p.edge.acts,
	}
	(&answers{localHost{p.host}, p.mayCall}).serve(p.peers)
	p.serveReasons()
	p.serveHears()
	p.serveMesh()
	if p.Stored != nil && p.Others != nil {
		p.Others.join(p, p.Stored)
	}
	p.scaler = scale.New(p.fleet, scale.Config{Why: p.Reasons, Log: p.Log})
	p.deploys = deploy.New(&deployFleet{p.fleet}, deploy.Config{Why: p.Reasons, Log: p.Log})
	p.keeper = schedule.New(&scheduleFleet{p.fleet}, schedule.Config{Why: p.Reasons, Log: p.Log})
	p.terms = store.NewTerms(p.Store, store.TermConfig{
		Owner: string(p.Node), Start: p.Epoch, TTL: termTTL, Changed: p.termChanged, Log: p.Log,
	})
	p.holder = perapp.NewHolder(appTerms{p.terms}, p.Log, p.holding, p.scaler, p.deploys, p.keeper)
	var reg control.Registry
	if p.Blobs != nil {
		reg = v2{registry.New(p.Blobs, tags{p.Store, p.cat, p.Reasons, p.Others}, p.Log)}
	}
	deps := control.Deps{
		Registry: reg,
		Store:    p.Store, Catalog: p.cat, Machines: machines{p.fleet}, Images: p.Uploads,
		Reasons: p.reasons(), Traffic: flows{&p.traffic, p.known, p.cat}, Addresses: p.Addresses, Secrets: p.Secrets, Resolve: p.Resolve, Answers: p.Answers,
		Nodes: p.nodes, HostStatus: p.hostStatus, Measure: p.Measure, Region: p.Region, Home: p.home, CA: caOf(p.CA), Domain: p.names.domain, Forward: p.forward, Log: p.Log,
	}
	if p.JoinListen != nil {
		deps.Joining = p.joining
	}
	p.api = control.New(deps)
	return p, nil
}

// Run runs the rooms until ctx ends. Proxy and machines go on then.
func (p *Platform) Run(ctx context.Context) error {
	defer p.closePeers()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return named("catalog", p.cat.Run(ctx, p.Copy)) })
	g.Go(func() error { return named("host", p.host.Run(ctx)) })
	g.Go(func() error {
		if err := p.bootstrap(ctx); err != nil {
			return named("bootstrap", err)
		}
		close(p.ready)
		select { // a table without what the host has yet to find would take machines out of routing
		case <-p.host.Found():
		case <-ctx.Done():
			return nil
		}
		g.Go(func() error { p.edge.run(ctx); return nil })
		g.Go(func() error { return named("peers", p.servePeers(ctx)) })
		if p.Stored != nil && p.Others != nil {
			g.Go(func() error { p.Others.run(ctx, p.Stored); return nil })
		}
		g.Go(func() error { return named("facts", p.telling.run(ctx)) })
		g.Go(func() error { return named("nodes", p.watchNodes(ctx)) })
		g.Go(func() error { return named("joins", p.letIn(ctx)) })
		g.Go(func() error { return named("members", p.watchMembers(ctx)) })
		g.Go(func() error { return named("removed nodes", p.buryNodes(ctx)) })
		g.Go(func() error { return p.removedSelf(ctx) })
		g.Go(func() error { return named("publish", p.publish(ctx)) })
		g.Go(func() error { return named("terms", p.terms.Run(ctx)) })
		if p.Mesh.IsValid() {
			g.Go(func() error { p.live(ctx); return nil })
			j := newJanitor(p)
			g.Go(func() error { return named("leases", j.watch(ctx)) })
			g.Go(func() error { j.run(ctx); return nil })
		}
		g.Go(func() error { return named("scale", p.holder.Run(ctx)) })
		return named("reap", p.reap(ctx))
	})
	return g.Wait()
}

// Ready returns when the platform knows the intent and answers.
func (p *Platform) Ready(ctx context.Context) error {
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// API is the HTTP API.
func (p *Platform) API() *control.Server { return p.api }

// Catalog is the platform's picture.
func (p *Platform) Catalog() *catalog.Catalog { return p.cat }
