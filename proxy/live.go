package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/live"
)

const (
	feedAgain  = time.Second           // before the feed's socket is opened again
	feedBuffer = 4 << 20               // of the kernel, for datagrams that come all at once
	feedEvery  = 10 * time.Millisecond // between looks at what changed
	loadSoon   = loadEvery             // between Loads of one app for other nodes, where one waits or a limit was crossed
	loadLater  = time.Second           // the same else
	slotsLater = 2 * time.Second       // after which counts are told that moved too little to be told at once
	slotsRate  = 250_000               // bytes a second that counts of slots may cost, about
	slotsSize  = 30                    // of one count, about
	letterSize = 110                   // of a datagram, with the headers of it and the mesh
	moveMost   = 100                   // slots: a greater move is always told at once
	factsTold  = 256                   // facts told to a watcher in one event
	toldKinds  = live.Kinds(1<<live.Have | 1<<live.Room)
	heardKinds = live.Kinds(1<<live.Have | 1<<live.Room | 1<<live.Slots | 1<<live.Load) // what the server hears
)

// feed is the proxy's part in what nodes tell each other: it makes facts of its tables, slots and loads, takes those
// of other nodes, and passes on what the servers have to say.
type feed struct {
	p *Proxy
	*live.Feed
	moved chan struct{} // rung when the address changed; capacity 1
	on    atomic.Bool   // there is a mesh
	addr  netip.Addr    // in it; Proxy.mu guards it
	begun bool          // it has a table; Proxy.mu guards it

	mu    sync.Mutex // guards what follows
	apps  []*app     // whose Load is to be told
	slots []held     // machines whose slots are
	bell  chan struct{}

	watched bool // there is a watcher; reporter.mu guards this and what follows
	facts   map[factKey]live.Fact
	order   []factKey
	peers   map[volant.NodeID]live.PeerState
}

type held struct {
	app *app
	m   *machine
}

type factKey struct {
	node volant.NodeID
	key  live.Key
}

// fed is what of an app was told to other nodes; app.mu guards it.
type fed struct {
	dirty, urgent bool
	last          time.Time
	peak          int // most held and waiting at once since
}

func newFeed(p *Proxy) *feed {
	return &feed{
		p: p, Feed: live.New(live.Config{Epoch: p.cfg.Epoch, Log: p.log}), moved: make(chan struct{}, 1), bell: make(chan struct{}, 1),
	}
}

// run keeps the feed running at the mesh address of the newest table.
func (f *feed) run(ctx context.Context) {
	var collector sync.WaitGroup
	defer collector.Wait()
	collector.Go(func() { f.collect(ctx) })
	stop := func() {}
	defer func() { stop() }()
	var at netip.Addr
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.moved:
		}
		f.p.mu.Lock()
		addr := f.addr
		f.p.mu.Unlock()
		if addr == at {
			continue
		}
		stop()
		stop, at = func() {}, addr
		if addr.IsValid() && f.p.cfg.Packet != nil {
			stop = f.start(ctx, netip.AddrPortFrom(addr, volant.LivePort))
		}
	}
}

// start talks at an address until stop is called.
func (f *feed) start(ctx context.Context, addr netip.AddrPort) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := f.talk(ctx, addr); err != nil {
				f.p.log.Error("the live feed does not run", "addr", addr, "err", err)
			}
			t := time.NewTimer(feedAgain)
			select {
			case <-ctx.Done():
			case <-t.C:
			}
			t.Stop()
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (f *feed) talk(ctx context.Context, addr netip.AddrPort) error {
	conn, err := f.p.cfg.Packet(ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // datagrams
	return f.Run(ctx, conn, live.Events{Fact: f.heard, Peer: f.peer})
}

// listenPacket opens a socket at an address which need not be on a link yet.
func listenPacket(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		cerr := rc.Control(func(fd uintptr) { err = freeBind(int(fd), addr.Addr().Is6()) })
		return errors.Join(cerr, err)
	}}
	conn, err := lc.ListenPacket(ctx, "udp", addr.String())
	if err != nil {
		return nil, err
	}
	if u, ok := conn.(*net.UDPConn); ok {
		u.SetReadBuffer(feedBuffer) //nolint:errcheck // with less, more is sent again
	}
	return conn, nil
}

// heard takes a fact of another node.
func (f *feed) heard(x live.Fact) {
	id := volant.MachineID(x.Key.ID)
	var err error
	switch x.Key.Kind {
	case live.Route:
		var s RemoteState
		if s, err = decodeRoute(&x); err == nil {
			f.p.SetRemote(x.Node, Remote{Machine: id, State: &s})
		}
	case live.Slots:
		var slots []RemoteSlots
		if _, slots, err = DecodeSlots(x); err == nil && len(slots) > 0 {
			f.p.SetRemote(x.Node, Remote{Machine: id, Slots: slots})
		}
	case live.Have, live.Room, live.Load: // the server's
	}
	if err != nil {
		f.p.log.Error("a fact of another node is malformed", "node", x.Node, "err", err)
		return
	}
	if heardKinds.Has(x.Key.Kind) {
		f.pass(x)
	}
}

// peer takes what is known of another node.
func (f *feed) peer(s live.PeerState) {
	if s.Epoch != 0 {
		f.p.PeerEpoch(s.Node, s.Epoch)
	}
	if s.RTT > 0 {
		f.p.SetRTT(s.Node, s.Distance())
	}
	f.p.setUnheard(s.Node, s.Silent)
	if s.Silent {
		f.p.LosePeer(s.Node)
	}
	r := &f.p.reporter
	r.mu.Lock()
	if f.watched {
		f.peers[s.Node] = s
	}
	r.mu.Unlock()
	r.ring()
}

// pass gives a fact to the watcher, if there is one.
func (f *feed) pass(x live.Fact) {
	r := &f.p.reporter
	r.mu.Lock()
	defer r.mu.Unlock()
	if !f.watched {
		return
	}
	k := factKey{x.Node, x.Key}
	if _, there := f.facts[k]; !there {
		f.order = append(f.order, k)
	}
	f.facts[k] = x
	r.ring()
}

// watch begins to tell a watcher, with all that is known. There is one at a time.
func (f *feed) watch() {
	r := &f.p.reporter
	r.mu.Lock()
	f.watched, f.facts, f.order, f.peers = true, map[factKey]live.Fact{}, nil, map[volant.NodeID]live.PeerState{}
	r.mu.Unlock()
	known, peers := f.Facts(live.Have, live.Room, live.Slots, live.Load), f.Peers()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range known {
		k := factKey{x.Node, x.Key}
		if newer, there := f.facts[k]; there && !newer.Version.Before(x.Version) {
			continue
		} else if !there {
			f.order = append(f.order, k)
		}
		f.facts[k] = x
	}
	for _, s := range peers {
		if _, there := f.peers[s.Node]; !there {
			f.peers[s.Node] = s
		}
	}
	r.ring()
}

// unwatch ends that.
func (f *feed) unwatch() {
	r := &f.p.reporter
	r.mu.Lock()
	defer r.mu.Unlock()
	f.watched, f.facts, f.order, f.peers = false, nil, nil, nil
}

// tell tells the watcher what is new, the newest version of each.
func (f *feed) tell(ev Events) {
	r := &f.p.reporter
	r.mu.Lock()
	peers := f.peers
	if len(peers) > 0 {
		f.peers = map[volant.NodeID]live.PeerState{}
	}
	r.mu.Unlock()
	for _, s := range peers {
		if ev.Peer != nil {
			ev.Peer(s)
		}
	}
	for {
		r.mu.Lock()
		n := min(len(f.order), factsTold)
		batch := make([]live.Fact, 0, n)
		for _, k := range f.order[:n] {
			batch = append(batch, f.facts[k])
			delete(f.facts, k)
		}
		f.order = slices.Clip(f.order[n:])
		r.mu.Unlock()
		if n == 0 {
			return
		}
		if ev.facts != nil {
			ev.facts(batch)
			continue
		}
		for i := range batch {
			if ev.Fact != nil {
				ev.Fact(batch[i])
			}
		}
	}
}

// Tell tells other nodes facts of this node's server, of kinds Have and Room: the newest version of each counts.
func (p *Proxy) Tell(_ context.Context, facts []live.Fact) error {
	if err := mayTell(facts); err != nil {
		return err
	}
	return p.feed.Set(facts...)
}

// TellAll is Tell, and says besides that the server has no other facts of these kinds. A server begins with it.
func (p *Proxy) TellAll(_ context.Context, kinds live.Kinds, facts []live.Fact) error {
	if kinds&^toldKinds != 0 {
		return volant.Invalidf("the server tells no facts of kinds %b", kinds)
	}
	if err := mayTell(facts); err != nil {
		return err
	}
	return p.feed.SetAll(kinds, facts...)
}

func mayTell(facts []live.Fact) error {
	for i := range facts {
		if !toldKinds.Has(facts[i].Key.Kind) {
			return volant.Invalidf("the server tells no facts of kind %d", facts[i].Key.Kind)
		}
	}
	return nil
}
