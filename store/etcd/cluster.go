package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/volant-edge/volant"
)

// Addrs says where a member listens, in the mesh: nobody else may reach it there. The zero Addrs is nowhere.
type Addrs struct {
	Peer   netip.AddrPort // for other members
	Client netip.AddrPort // for nodes without a member
}

// MeshAddrs is where the member of the node with a mesh address listens.
func MeshAddrs(mesh netip.Addr) Addrs {
	return Addrs{Peer: netip.AddrPortFrom(mesh, volant.EtcdPeerPort), Client: netip.AddrPortFrom(mesh, volant.EtcdClientPort)}
}

// Endpoint is the URL by which a Remote reaches the member of the node with a mesh address.
func Endpoint(mesh netip.Addr) string { return urlOf(MeshAddrs(mesh).Client) }

// IsZero says whether the member listens nowhere.
func (a Addrs) IsZero() bool { return a == Addrs{} }

func (a Addrs) peerURL() string {
	if a.IsZero() {
		return memberURL
	}
	return urlOf(a.Peer)
}

func urlOf(a netip.AddrPort) string { return "http://" + a.String() }

func addrOf(raw string) netip.AddrPort {
	u, err := url.Parse(raw)
	if err != nil {
		return netip.AddrPort{}
	}
	a, _ := netip.ParseAddrPort(u.Host)
	return a
}

// InitialCluster is what a new member must know of the others to start: the answer of AddMember, to be given
// as Config.Join and kept (as JSON, say) until the member has started once.
type InitialCluster struct {
	Member uint64            `json:"member"` // etcd's ID of the new member
	Peers  map[string]string `json:"peers"`  // name → peer URL, the new one's included
}

// Member is one member of the store.
type Member struct {
	ID      uint64         `json:"id"`
	Node    volant.NodeID  `json:"node,omitempty"` // empty while it has never started
	Peer    netip.AddrPort `json:"peer,omitzero"`
	Client  netip.AddrPort `json:"client,omitzero"`
	Started bool           `json:"started"` // it has been heard of since it was added
	Learner bool           `json:"learner"` // it has no vote yet
	Leader  bool           `json:"leader"`
	Healthy bool           `json:"healthy"`           // it answers, and knows a leader
	Trouble string         `json:"trouble,omitempty"` // why not
	Index   uint64         `json:"index,omitempty"`   // of the log, applied
	Bytes   int64          `json:"bytes,omitempty"`   // of its database
	Version string         `json:"version,omitempty"` // etcd's
}

// Admin changes which nodes have a member. *Store and *Remote are ones, so that any node can do it.
//
// To grow, a node which is in the mesh asks AddMember, opens its Store with the answer as Config.Join and its
// own Listen, and runs it: it begins as a learner, without a vote, and Run promotes it when it has caught
// up. All of this may be broken off and begun again at any point: AddMember gives the same answer until the
// member has started, and a member which has started once goes on from its directory.
//
// A node whose directory is lost asks ReplaceMember instead: its old member must not come back empty.
//
// Use 1, 3 or 5 members. An even number tolerates no more failures than the odd one below it; while it lasts,
// the store says so in its log.
type Admin interface {
	// Members lists all members and asks each how it is, for at most 2 s.
	Members(ctx context.Context) ([]Member, error)
	// AddMember adds a learner. One that was added and never started is added once. It fails with
	// volant.ErrExists if the node has a member that has started.
	AddMember(ctx context.Context, node volant.NodeID, at Addrs) (InitialCluster, error)
	// Promote gives the member of a node a vote; volant.ErrPrecondition while it has not caught up. A member
	// that has a vote is left as it is. A Store does this for its own member.
	Promote(ctx context.Context, node volant.NodeID) error
	// RemoveMember takes the member of a node out, be it dead; it stops serving. The member of a node that never
	// had one is volant.ErrNotFound. The last one is not removed.
	RemoveMember(ctx context.Context, node volant.NodeID) error
	// ReplaceMember is RemoveMember, if there is one, and AddMember.
	ReplaceMember(ctx context.Context, node volant.NodeID, at Addrs) (InitialCluster, error)
}

var (
	_ Admin = (*Store)(nil)
	_ Admin = (*Remote)(nil)
)

const (
	statusTime = 2 * time.Second
	// settleTime bounds how long a change of members waits for those there are to be well connected: etcd
	// wants to have seen them for 5 s.
	settleTime = 15 * time.Second
)

// admin implements Admin over whoever answers.
type admin struct {
	at     func() (session, error)
	status func(ctx context.Context, m *etcdserverpb.Member) (*clientv3.StatusResponse, error)
	refuse error // why members are not managed here, or nil
}

// Members implements Admin.
func (a admin) Members(ctx context.Context) ([]Member, error) {
	list, err := a.list(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Member, len(list))
	var wg sync.WaitGroup
	for i, m := range list {
		wg.Go(func() { out[i] = a.look(ctx, m) })
	}
	wg.Wait()
	slices.SortFunc(out, func(x, y Member) int { return cmp.Or(cmp.Compare(x.Node, y.Node), cmp.Compare(x.ID, y.ID)) })
	return out, nil
}

func (a admin) list(ctx context.Context) ([]*etcdserverpb.Member, error) {
	if a.refuse != nil {
		return nil, a.refuse
	}
	s, err := a.at()
	if err != nil {
		return nil, err
	}
	var list []*etcdserverpb.Member
	err = s.do(ctx, true, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.MemberList(ctx)
		if err != nil {
			return nil, err
		}
		list = res.Members
		return res.Header, nil
	})
	if err != nil { // the call may go on, and write list
		return nil, err
	}
	return list, nil
}

func (a admin) look(ctx context.Context, m *etcdserverpb.Member) Member {
	out := Member{ID: m.ID, Node: volant.NodeID(m.Name), Started: m.Name != "", Learner: m.IsLearner}
	if len(m.PeerURLs) > 0 {
		out.Peer = addrOf(m.PeerURLs[0])
	}
	if len(m.ClientURLs) > 0 {
		out.Client = addrOf(m.ClientURLs[0])
	}
	if !out.Started {
		out.Trouble = "it has not started yet"
		return out
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	st, err := a.status(ctx, m)
	if err != nil {
		out.Trouble = "it does not answer: " + err.Error()
		return out
	}
	out.Leader, out.Index, out.Bytes, out.Version = st.Leader == m.ID, st.RaftAppliedIndex, st.DbSize, st.Version
	switch {
	case st.Leader == 0:
		out.Trouble = "it knows no leader: it does not reach a majority of the members"
	case len(st.Errors) > 0:
		out.Trouble = st.Errors[0]
	}
	out.Healthy = out.Trouble == ""
	return out
}

// AddMember implements Admin.
func (a admin) AddMember(ctx context.Context, node volant.NodeID, at Addrs) (InitialCluster, error) {
	if at.IsZero() || node == "" {
		return InitialCluster{}, volant.Invalidf("a member needs a node and an address in the mesh")
	}
	list, err := a.list(ctx)
	if err != nil {
		return InitialCluster{}, err
	}
	for _, m := range list {
		switch {
		case m.Name == string(node):
			return InitialCluster{}, volant.Errorf(volant.ErrExists, "node %s has a member of the store already", node).
				WithRemedy("if its directory is lost, replace the member")
		case slices.Contains(m.PeerURLs, at.peerURL()) && m.Name == "":
			return initial(m.ID, node, at, list), nil
		case slices.Contains(m.PeerURLs, at.peerURL()):
			return InitialCluster{}, volant.Errorf(volant.ErrExists, "%s is the address of the member of node %s", at.Peer, m.Name)
		}
	}
	var added *clientv3.MemberAddResponse
	err = a.change(ctx, "add a member", func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.MemberAddAsLearner(ctx, []string{at.peerURL()})
		if err != nil {
			return nil, err
		}
		added = res
		return res.Header, nil
	})
	if err != nil {
		return InitialCluster{}, err
	}
	return initial(added.Member.ID, node, at, added.Members), nil
}

// initial is the answer for the member with an ID among all.
func initial(id uint64, node volant.NodeID, at Addrs, all []*etcdserverpb.Member) InitialCluster {
	in := InitialCluster{Member: id, Peers: map[string]string{}}
	for _, m := range all {
		name := m.Name
		if name == "" {
			name = strconv.FormatUint(m.ID, 16)
		}
		if m.ID != id && len(m.PeerURLs) > 0 {
			in.Peers[name] = m.PeerURLs[0]
		}
	}
	in.Peers[string(node)] = at.peerURL()
	return in
}

// Promote implements Admin.
func (a admin) Promote(ctx context.Context, node volant.NodeID) error {
	m, _, err := a.find(ctx, node)
	if err != nil || !m.IsLearner {
		return err
	}
	return a.change(ctx, "promote the member of node "+string(node), func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.MemberPromote(ctx, m.ID)
		if errors.Is(err, rpctypes.ErrMemberNotLearner) { // somebody else did
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return res.Header, nil
	})
}

// RemoveMember implements Admin.
func (a admin) RemoveMember(ctx context.Context, node volant.NodeID) error {
	m, list, err := a.find(ctx, node)
	if err != nil {
		return err
	}
	if len(list) == 1 {
		return volant.Errorf(volant.ErrPrecondition, "node %s has the only member of the store", node).
			WithRemedy("add another control node first")
	}
	return a.remove(ctx, m.ID)
}

// remove takes a member out. The one that was asked may be the one that goes, and not answer any more.
func (a admin) remove(ctx context.Context, id uint64) error {
	err := a.change(ctx, "remove a member", func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
		res, err := c.MemberRemove(ctx, id)
		if errors.Is(err, rpctypes.ErrMemberNotFound) { // somebody else did
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return res.Header, nil
	})
	if !errors.Is(err, volant.ErrUnavailable) {
		return err
	}
	list, lerr := a.list(ctx)
	if lerr != nil || slices.ContainsFunc(list, func(m *etcdserverpb.Member) bool { return m.ID == id }) {
		return err
	}
	return nil
}

// ReplaceMember implements Admin.
func (a admin) ReplaceMember(ctx context.Context, node volant.NodeID, at Addrs) (InitialCluster, error) {
	list, err := a.list(ctx)
	if err != nil {
		return InitialCluster{}, err
	}
	for _, m := range list {
		if m.Name == string(node) || m.Name != "" && slices.Contains(m.PeerURLs, at.peerURL()) {
			if err := a.remove(ctx, m.ID); err != nil {
				return InitialCluster{}, err
			}
		}
	}
	return a.AddMember(ctx, node, at)
}

// find returns the member of a node, and all.
func (a admin) find(ctx context.Context, node volant.NodeID) (*etcdserverpb.Member, []*etcdserverpb.Member, error) {
	list, err := a.list(ctx)
	if err != nil {
		return nil, nil, err
	}
	if m := memberOf(list, node); m != nil {
		return m, list, nil
	}
	return nil, nil, volant.Errorf(volant.ErrNotFound, "node %s has no member of the store", node)
}

// memberOf is the member of a node, also one that never started and stands at the node's mesh address, or nil.
func memberOf(list []*etcdserverpb.Member, node volant.NodeID) *etcdserverpb.Member {
	mesh := MeshAddrs(volant.MeshAddr(node)).peerURL()
	for _, m := range list {
		if m.Name == string(node) || m.Name == "" && slices.Contains(m.PeerURLs, mesh) {
			return m
		}
	}
	return nil
}

// change changes the members. While those there are have not been connected for long enough, it tries again.
func (a admin) change(ctx context.Context, what string, fn func(context.Context, *clientv3.Client) (*etcdserverpb.ResponseHeader, error)) error {
	s, err := a.at()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		told := make(chan error, 8) // etcd's own words; attempts are few
		err := s.do(ctx, false, func(ctx context.Context, c *clientv3.Client) (*etcdserverpb.ResponseHeader, error) {
			h, err := fn(ctx, c)
			select {
			case told <- err:
			default:
			}
			return h, err
		})
		raw := last(told)
		unsettled := errors.Is(raw, rpctypes.ErrUnhealthy) || errors.Is(raw, rpctypes.ErrMemberNotEnoughStarted)
		if unsettled {
			select {
			case <-time.After(settleTime / 60):
				continue
			case <-ctx.Done():
			}
		}
		return changeError(what, raw, err)
	}
}

// last takes what is in a channel, and returns the last of it.
func last(ch <-chan error) (err error) {
	for {
		select {
		case err = <-ch:
		default:
			return err
		}
	}
}

func changeError(what string, raw, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(raw, rpctypes.ErrUnhealthy), errors.Is(raw, rpctypes.ErrMemberNotEnoughStarted):
		return volant.Errorf(volant.ErrPrecondition, "%s: too few members of the store are up for it to stay safe", what).
			WithRemedy("bring the others back, or remove a dead one first; volant nodes list shows them")
	case errors.Is(raw, rpctypes.ErrTooManyLearners):
		return volant.Errorf(volant.ErrPrecondition, "%s: another member is joining", what).
			WithRemedy("wait until it has a vote, or remove it")
	case errors.Is(raw, rpctypes.ErrMemberLearnerNotReady):
		return volant.Errorf(volant.ErrPrecondition, "%s: it has not caught up yet", what)
	case errors.Is(raw, rpctypes.ErrPeerURLExist), errors.Is(raw, rpctypes.ErrMemberExist):
		return volant.Errorf(volant.ErrExists, "%s: its address is that of another member", what)
	}
	return fmt.Errorf("%s: %w", what, err)
}
