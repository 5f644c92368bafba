package node

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

// StoreConfig names an external etcd that keeps the intent, in place of members on the control nodes.
type StoreConfig struct {
	Endpoints []string `toml:"endpoints,omitempty"` // URLs; all of one scheme, http or https
	Prefix    string   `toml:"prefix,omitempty"`    // of all keys, where several clusters share the etcd
	Cert      string   `toml:"cert,omitempty"`      // files, PEM
	Key       string   `toml:"key,omitempty"`
	CA        string   `toml:"ca,omitempty"`
}

// check says what is wrong with the configuration, or nil.
func (c *StoreConfig) check() error {
	scheme := ""
	for _, raw := range c.Endpoints {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return volant.Invalidf("store.endpoints: %q is no URL such as https://etcd1.example.com:2379", raw)
		}
		if scheme != "" && u.Scheme != scheme {
			return volant.Invalidf("store.endpoints mix http and https")
		}
		scheme = u.Scheme
	}
	switch {
	case len(c.Endpoints) == 0 && c.Prefix+c.Cert+c.Key+c.CA != "":
		return volant.Invalidf("store has no endpoints").WithRemedy("name those of the external etcd, or leave [store] out")
	case (c.Cert == "") != (c.Key == ""):
		return volant.Invalidf("store.cert and store.key go together")
	case scheme == "http" && c.Cert+c.CA != "":
		return volant.Invalidf("store.cert and store.ca are for https endpoints")
	}
	return nil
}

// intent is the store of this node, be it up or down, and the copy that all reading is done from.
type intent struct {
	store store.Store
	copy  *local.Copy
	seat  *etcd.Seat
	node  volant.NodeID
	down  bool // the store could not be opened at the start; it is tried again
	log   *slog.Logger
}

// intentConfig says which store a node uses: a member of its own or those of others, as its record says, or an
// external one.
type intentConfig struct {
	Node     volant.NodeID
	Mesh     netip.Addr  // its address in the mesh; invalid: it is alone
	Joined   bool        // it is not the first of its cluster
	Stores   []string    // endpoints that it was told as it joined
	External StoreConfig // without endpoints there is none
	Log      *slog.Logger
}

const (
	// openTime bounds how long a start waits for a store it cannot do without, and copyTime with a copy.
	openTime = 30 * time.Second
	copyTime = 5 * time.Second
)

// openIntent opens the copy and the store. A store that cannot be opened leaves a node which serves
// from its copy; only without a copy too that is an error, unless it joined and has yet to hear.
func openIntent(ctx context.Context, dir *datadir.Dir, cfg intentConfig) (*intent, error) {
	copyDir, err := dir.Sub("intent")
	if err != nil {
		return nil, err
	}
	etcdDir, err := dir.Sub("etcd")
	if err != nil {
		return nil, err
	}
	in := &intent{node: cfg.Node, log: cfg.Log}
	copyCfg := local.Config{Path: copyDir + "/copy.db", Log: cfg.Log}
	in.copy, err = local.Open(copyCfg)
	damaged := errors.Is(err, local.ErrDamaged)
	if err != nil && !damaged {
		return nil, err
	}
	floor := func() store.Revision {
		if in.copy == nil { // of any store, but of one: an empty store is not taken for this node's
			return store.Revision{Rev: 1}
		}
		return in.copy.Revision()
	}
	first := floor()
	if in.seat, err = newSeat(etcdDir, cfg, first, floor); err != nil {
		return nil, err
	}
	in.store = in.seat
	if !damaged {
		in.ask(ctx)
	}
	within := openTime
	if !damaged && (cfg.Joined || !first.IsZero()) {
		within = copyTime
	}
	opening, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err = in.seat.Start(opening)
	switch {
	case ctx.Err() != nil:
		return nil, errors.Join(ctx.Err(), in.close())
	case err == nil:
	case damaged, first.IsZero() && !cfg.Joined:
		return nil, errors.Join(unusable(err), in.seat.Close())
	default:
		cfg.Log.Error("the store is down: serving from this node's copy", "err", err)
		in.down = true
		return in, nil
	}
	if damaged {
		if in.copy, err = local.Rebuild(ctx, copyCfg, in.store); err != nil {
			return nil, errors.Join(err, in.seat.Close())
		}
		cfg.Log.Warn("the copy of the intent was damaged and made anew from the store")
	}
	return in, nil
}

func newSeat(dir string, cfg intentConfig, first store.Revision, floor func() store.Revision) (*etcd.Seat, error) {
	sc := etcd.SeatConfig{
		Member: etcd.Config{Dir: dir, Name: string(cfg.Node), Log: quiet(cfg.Log)},
		Remote: etcd.RemoteConfig{Endpoints: cfg.Stores, Log: quiet(cfg.Log)},
		Joined: cfg.Joined, Floor: floor, Log: cfg.Log,
	}
	if cfg.Mesh.IsValid() {
		sc.Member.Listen = etcd.MeshAddrs(cfg.Mesh)
		if !first.IsZero() { // it may have to wait for others, and there is a copy to serve from
			sc.Member.StartTime = copyTime
		}
	}
	if len(cfg.External.Endpoints) > 0 {
		var err error
		if sc.Remote, err = cfg.External.remote(); err != nil {
			return nil, err
		}
		sc.Remote.Log = quiet(cfg.Log)
	}
	return etcd.NewSeat(sc), nil
}

// remote is the external etcd as a store.
func (c *StoreConfig) remote() (etcd.RemoteConfig, error) {
	rc := etcd.RemoteConfig{External: true, Endpoints: c.Endpoints, Prefix: c.Prefix}
	var err error
	if c.Cert+c.Key+c.CA != "" {
		rc.TLS, err = etcd.TLS(c.Cert, c.Key, c.CA)
	}
	return rc, err
}

// unusable says that there is nothing to start from.
func unusable(err error) error {
	text := err.Error()
	var known *volant.Error
	if errors.As(err, &known) {
		text = known.Text // its remedy counts on the copy
	}
	return volant.Errorf(volant.ErrUnavailable, "neither the store nor its copy can be opened: %s", text).
		WithRemedy("run volant control restore --from FILE with the copy of another node or of a backup, which is its intent/copy.db")
}

func (in *intent) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return in.seat.Run(ctx) })
	g.Go(func() error { return in.copy.Run(ctx, in.store) })
	g.Go(func() error { return in.follow(ctx) })
	return g.Wait()
}

// ask tells the seat what the records of nodes in the copy say of it, and returns their revision.
func (in *intent) ask(ctx context.Context) store.Revision {
	recs, rev, err := store.AllWithTombstones[volant.Node](ctx, in.copy, string(volant.KindNode)+"/")
	if err != nil { // of records which cannot be read; the others count
		in.log.Warn("a node's record cannot be read", "err", err)
	}
	in.seat.SetWish(wishFor(in.node, recs))
	return rev
}

// follow tells the seat of each change of nodes, until ctx ends.
func (in *intent) follow(ctx context.Context) error {
	for {
		rev := in.ask(ctx)
		err := in.copy.Watch(ctx, string(volant.KindNode)+"/", rev, func(b store.Batch) error {
			if len(b.Events) > 0 {
				return errChanged
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // asked to end
		}
		if !errors.Is(err, errChanged) && !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
}

var errChanged = errors.New("changed")

// wishFor says what the records of nodes ask of the store's members. A node without a record has no say.
func wishFor(self volant.NodeID, nodes []*volant.Node) (w etcd.Wish) {
	for _, n := range nodes {
		id := volant.NodeID(n.ID)
		keeps := n.Has(volant.RoleControl) && !n.Tombstone
		if id != self && !n.Tombstone && n.Mesh.Key != "" {
			w.Others = append(w.Others, etcd.Endpoint(volant.MeshAddr(id)))
		}
		switch {
		case id == self && keeps:
			w.Member = true
		case keeps && n.Mesh.Key != "":
			w.Endpoints = append(w.Endpoints, etcd.Endpoint(volant.MeshAddr(id)))
		case !keeps && (n.Tombstone || len(n.Roles) > 0):
			w.Gone = append(w.Gone, id)
		}
	}
	return w
}

func (in *intent) close() error {
	err := in.seat.Close()
	if in.copy == nil {
		return err
	}
	return errors.Join(err, in.copy.Close())
}

// quiet is log without what the store says below a warning: it says a line for each write.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(warnings{log.Handler()}) }

type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }

func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }

// intentConfig says which store this server uses.
func (s *server) intentConfig() intentConfig {
	c := intentConfig{Node: s.dir.Node(), External: s.cfg.Store, Log: s.cfg.Log}
	if s.member != nil || s.cfg.Mesh.Endpoint != "" {
		c.Mesh = volant.MeshAddr(c.Node)
	}
	if m := s.member; m != nil {
		c.Joined = true
		if !m.External {
			c.Stores = m.Stores
		} else if len(c.External.Endpoints) == 0 {
			c.External.Endpoints, c.External.Prefix = m.Stores, m.StorePrefix
		}
	}
	return c
}
