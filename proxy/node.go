package proxy

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/backhaul"
	"github.com/volant-edge/volant/live"
)

// Remote is what the host of a machine tells of it. The nil parts are not told.
type Remote struct {
	Machine volant.MachineID
	State   *RemoteState
	Slots   []RemoteSlots
}

// RemoteState is a machine as its host's proxy leads connections to it.
type RemoteState struct {
	Phase    Phase
	Seq      uint64
	Draining bool
	AskLeave bool
	Failing  []uint16
}

// RemoteSlots are the slots held of one internal port of a machine, by whomever. Those of a newer Version count.
type RemoteSlots struct {
	Port    uint16
	Held    int
	Version live.Version
}

// remoteKept is how long what was told of a machine is kept while no table has it.
const remoteKept = 10 * time.Minute

// remoteFacts are the newest facts of one machine.
type remoteFacts struct {
	node   volant.NodeID
	state  *RemoteState
	slots  []RemoteSlots
	listed time.Time // when a table had it last, or it was told first
}

// over is the machine as the table has it, with what its host told.
func (f *remoteFacts) over(m Machine) Machine {
	m.Addr, m.Life, m.Cold = netip.Addr{}, 0, false
	if f != nil && f.state != nil && f.node == m.Node {
		m.Phase, m.Seq, m.Draining, m.AskLeave, m.Failing = f.state.Phase, f.state.Seq, f.state.Draining, f.state.AskLeave, f.state.Failing
	}
	return m
}

// SetRemote says what the host on a node tells of its machines. It counts for machines which the table has on
// that node, now or later, and comes before what the table says of them.
func (p *Proxy) SetRemote(node volant.NodeID, facts ...Remote) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, r := range facts {
		f := p.remotes[r.Machine]
		if f == nil || f.node != node {
			f = &remoteFacts{node: node, listed: now}
			p.remotes[r.Machine] = f
		}
		if r.State != nil {
			f.state = r.State
		}
		f.slots = mergeSlots(f.slots, r.Slots)
		a := p.homes[r.Machine]
		if a == nil {
			continue
		}
		if r.State != nil {
			a.setRemote(r.Machine, f, now)
		}
		for _, s := range r.Slots {
			a.told(r.Machine, s)
		}
	}
}

// mergeSlots keeps the newest of each port.
func mergeSlots(old, fresh []RemoteSlots) []RemoteSlots {
	for _, s := range fresh {
		i := slices.IndexFunc(old, func(o RemoteSlots) bool { return o.Port == s.Port })
		switch {
		case i < 0:
			old = append(old, s)
		case old[i].Version.Before(s.Version):
			old[i] = s
		}
	}
	return old
}

// pruneRemotesLocked forgets what was told of machines that no table has.
func (p *Proxy) pruneRemotesLocked(machines map[volant.MachineID]bool, now time.Time) {
	for id, f := range p.remotes {
		switch {
		case machines[id]:
			f.listed = now
		case now.Sub(f.listed) > remoteKept:
			delete(p.remotes, id)
		}
	}
}

// node is another node of the mesh as this proxy knows it. It is never forgotten, since connections point at it.
type node struct {
	p       *Proxy
	id      volant.NodeID
	stream  atomic.Uint64 // number of the last request to it
	asks    atomic.Int32  // requests that wait there now
	away    atomic.Bool   // its machines are left out
	silent  atomic.Bool   // it is not heard: what is known of its machines may be old
	band    atomic.Uint32 // its distance, as candidates have it
	rtt     atomic.Int64  // nanoseconds; 0 until it was measured
	heardAt atomic.Int64  // when it answered a request last

	mu      sync.Mutex // guards what follows; taken after an app's, held for moments
	addr    netip.AddrPort
	region  volant.Region
	listed  bool
	epoch   uint64             // newest boot epoch heard of its proxy; 0 before the first
	life    *life              // of its proxy in that epoch: connections to it do not outlive that
	seen    window             // the numbers of its requests in that epoch
	streams map[uint64]*stream // by their numbers in that epoch
	waiting map[*app]int       // of those that came from it
	avoided bool
	backoff time.Duration // before the next look at whether it answers
}

// peering is what the roads look up: the mesh as the newest table has it.
type peering struct {
	self   netip.Addr
	byAddr map[netip.Addr]*node
	routes map[hereKey]*route
}

// nodeLocked is the node with an ID; p.mu is held.
func (p *Proxy) nodeLocked(id volant.NodeID) *node {
	n := p.nodes[id]
	if n == nil {
		n = &node{p: p, id: id, life: newLife(0), streams: map[uint64]*stream{}, waiting: map[*app]int{}}
		n.away.Store(true) // until it is listed
		n.band.Store(uint32(guessBand(0, false)))
		p.nodes[id] = n
	}
	return n
}

// meetLocked takes the table's word of the other nodes.
func (p *Proxy) meetLocked(t *Table) *peering {
	pr := &peering{self: t.Mesh.Unmap(), byAddr: map[netip.Addr]*node{}, routes: map[hereKey]*route{}}
	listed := map[volant.NodeID]bool{}
	if t.Mesh.IsValid() {
		for _, c := range t.Peers {
			n := p.nodeLocked(c.Node)
			listed[c.Node] = true
			pr.byAddr[c.Addr.Unmap()] = n
			n.list(c, t.Region)
		}
	}
	for id, n := range p.nodes {
		if !listed[id] {
			n.unlist()
		}
	}
	return pr
}

// list notes what the table says of the node.
func (n *node) list(c Peer, here volant.Region) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr, n.region, n.listed = netip.AddrPortFrom(c.Addr.Unmap(), volant.BackhaulPort), c.Region, true
	n.away.Store(n.avoided)
	n.band.Store(uint32(guessBand(time.Duration(n.rtt.Load()), c.Region == here)))
}

// unlist notes that the table does not have the node: who is not among its peers is not spoken to.
func (n *node) unlist() {
	n.mu.Lock()
	n.listed = false
	n.away.Store(true)
	lost := slices.Collect(maps.Values(n.streams))
	if len(lost) > 0 {
		lost = n.endLocked()
	}
	n.mu.Unlock()
	for _, s := range lost {
		go s.lose() // the proxy's lock is held
	}
}

// placedLocked is an app's machines with what the hosts of those on other nodes have told; p.mu is held.
func (p *Proxy) placedLocked(a *app, ms []Machine, self volant.NodeID) []Machine {
	out, cloned := ms, false
	for i, m := range ms {
		if m.Node == "" {
			continue
		}
		if !cloned {
			out, cloned = slices.Clone(ms), true
		}
		if m.Node == self {
			out[i].Node = ""
			continue
		}
		out[i] = p.remotes[m.ID].over(m)
		p.homes[m.ID] = a
	}
	return out
}

// hereKey finds a service for a request of another node.
type hereKey struct {
	app   backhaul.App
	group backhaul.Name
	port  uint16
}

// routeApp adds the services of an app by which other nodes ask for them.
func (pr *peering) routeApp(a *app, cfg *App) {
	id, ok := backhaul.AppOf(a.id)
	group, fits := backhaul.NameOf(a.group)
	if !pr.self.IsValid() || !ok || !fits {
		return
	}
	for i := range cfg.Services {
		port := cfg.Services[i].InternalPort
		pr.routes[hereKey{id, group, port}] = &route{app: a, id: a.id, svc: a.service(port), name: cfg.Name, org: cfg.Org}
	}
}

// guessBand is a node's band; near says what to think while its round trip was not measured.
func guessBand(rtt time.Duration, near bool) uint8 {
	if rtt == 0 && !near {
		return uint8(len(bandEnds))
	}
	return bandOf(rtt)
}

// where is the address of the node's backhaul, and its region.
func (n *node) where() (netip.AddrPort, volant.Region) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.addr, n.region
}

// waiters is how many connections of the app wait here that came from the node.
func (n *node) waiters(a *app) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.waiting[a]
}

func (n *node) wait(a *app, more int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.waiting[a] += more; n.waiting[a] == 0 {
		delete(n.waiting, a)
	}
}

// now is the newest epoch of the node's proxy and its life.
func (n *node) now() (uint64, *life) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.epoch, n.life
}

// SetRTT says how far a node is.
func (p *Proxy) SetRTT(id volant.NodeID, rtt time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.nodeLocked(id)
	n.rtt.Store(int64(rtt))
	n.mu.Lock()
	near := n.region == p.table.Region
	n.mu.Unlock()
	if band := uint32(guessBand(rtt, near)); n.band.Swap(band) != band {
		p.nodesChangedLocked()
	}
}

// setUnheard says whether a node is not heard, so that what is known of its machines may be old.
func (p *Proxy) setUnheard(id volant.NodeID, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodeLocked(id).silent.Swap(silent) != silent {
		p.nodesChangedLocked()
	}
}

// PeerEpoch says which boot epoch of a node's proxy was heard. A newer one ends all connections with the one before.
func (p *Proxy) PeerEpoch(id volant.NodeID, epoch uint64) {
	p.mu.Lock()
	n := p.nodeLocked(id)
	p.mu.Unlock()
	n.heard(epoch)
}

// LosePeer says that a node was not heard for so long that nothing on the way to it or from it counts any more: its
// streams are reset, and their slots become free.
func (p *Proxy) LosePeer(id volant.NodeID) {
	p.mu.Lock()
	n := p.nodeLocked(id)
	p.mu.Unlock()
	n.mu.Lock()
	lost := n.endLocked()
	n.mu.Unlock()
	n.p.lose(lost)
}

// heard notes a boot epoch of the node's proxy; false for one that is over.
func (n *node) heard(epoch uint64) bool {
	n.mu.Lock()
	if epoch <= n.epoch {
		current := epoch == n.epoch
		n.mu.Unlock()
		return current
	}
	var lost []*stream
	if n.epoch != 0 {
		lost = n.endLocked()
	}
	n.epoch, n.seen = epoch, window{}
	n.heardAt.Store(time.Now().UnixNano()) // it is there, whatever became of what was under way
	n.mu.Unlock()
	n.p.lose(lost)
	return true
}

// endLocked ends the life that connections with the node have, and says which streams that are here belong to it.
func (n *node) endLocked() []*stream {
	close(n.life.over)
	n.life = newLife(0)
	lost := slices.Collect(maps.Values(n.streams))
	clear(n.streams)
	return lost
}

// lose ends streams whose edge is lost, and connections to hosts whose proxy is.
func (p *Proxy) lose(lost []*stream) {
	for _, s := range lost {
		s.lose()
	}
	p.mu.Lock()
	loops := p.loops
	p.mu.Unlock()
	for _, l := range loops {
		l.do((*loop).bury)
	}
}

// Times of leaving out a host that did not answer.
const (
	avoidFirst = time.Second
	avoidMost  = 30 * time.Second
)

// avoid leaves the node's machines out for a while, since it did not answer.
func (n *node) avoid(cause error) {
	n.mu.Lock()
	if n.avoided {
		n.mu.Unlock()
		return
	}
	n.avoided = true
	n.backoff = min(max(2*n.backoff, avoidFirst), avoidMost)
	wait := n.backoff
	n.away.Store(true)
	n.mu.Unlock()
	n.p.log.Warn("host is left out", "node", n.id, "err", cause, "wait", wait)
	n.p.noteNode(n, "host_avoided", "node "+string(n.id)+" did not answer over the backhaul ("+cause.Error()+
		"): its machines are left out, looked at again after "+wait.String())
	n.p.nodesChanged()
	time.AfterFunc(wait, n.look)
}

// answered notes that the node works.
func (n *node) answered(now time.Time) {
	n.heardAt.Store(now.UnixNano())
	n.mu.Lock()
	again := n.avoided
	n.avoided, n.backoff = false, 0
	if again {
		n.away.Store(!n.listed)
	}
	n.mu.Unlock()
	if again {
		n.p.nodesChanged()
	}
}

// look sees whether a node that is left out answers again, without a client that would wait for it.
func (n *node) look() {
	p := n.p
	p.mu.Lock()
	ctx := p.serving
	p.mu.Unlock()
	if ctx == nil || ctx.Err() != nil {
		return
	}
	err := p.greet(ctx, n)
	n.mu.Lock()
	if !n.avoided {
		n.mu.Unlock()
		return
	}
	if err != nil {
		n.backoff = min(2*n.backoff, avoidMost)
		wait := n.backoff
		n.mu.Unlock()
		time.AfterFunc(wait, n.look)
		return
	}
	n.avoided = false // the time it was avoided for is kept until a client's connection works
	n.away.Store(!n.listed)
	n.mu.Unlock()
	p.log.Info("host is back", "node", n.id)
	p.noteNode(n, "host_back", "node "+string(n.id)+" answers over the backhaul again")
	p.nodesChanged()
}

func (p *Proxy) nodesChanged() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nodesChangedLocked()
}

// nodesChangedLocked has all apps look at the nodes of their machines again.
func (p *Proxy) nodesChangedLocked() {
	for _, a := range p.apps {
		a.nodesChanged()
	}
}

// window remembers which numbers were taken, of the last ones up to the highest. What is below them counts as taken.
type window struct {
	high uint64
	bits [windowSize / 64]uint64
}

// windowSize is how far a request may be behind others of its edge. They overtake each other by the time of a few
// packets sent again: a second or two, at some thousand in a second.
const windowSize = 8192

// take takes a number; false if it was taken before.
func (w *window) take(n uint64) bool {
	if n == 0 || n+windowSize <= w.high {
		return false
	}
	if n > w.high {
		if n-w.high >= windowSize {
			clear(w.bits[:])
		} else {
			for i := w.high + 1; i <= n; i++ {
				w.bits[i%windowSize/64] &^= 1 << (i % 64)
			}
		}
		w.high = n
	}
	word, bit := &w.bits[n%windowSize/64], uint64(1)<<(n%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}
