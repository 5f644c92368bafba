package node

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/why"
)

// joinKey is the key with which the control nodes of a cluster prove themselves to servers that join. It follows from
// the cluster's key of secrets, which every node has, so that a token made on one control node holds on all.
func (p *Platform) joinKey() (ed25519.PrivateKey, error) {
	seed, err := p.Secrets.Derive("join listener")
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// joining is control's: what a join token has to tell of the cluster, and where control nodes let servers in.
func (p *Platform) joining() (join.Fingerprint, []string, error) {
	key, err := p.joinKey()
	if err != nil {
		return join.Fingerprint{}, nil, err
	}
	var at []string
	if p.Endpoint.IsValid() && p.has(volant.RoleControl) {
		at = append(at, p.Endpoint.String())
	}
	for id, n := range p.cat.Snapshot().Nodes() {
		if id != p.Node && n.Has(volant.RoleControl) && !n.Tombstone && n.Mesh.Endpoint.IsValid() {
			at = append(at, n.Mesh.Endpoint.String())
		}
	}
	f, err := join.FingerprintOf(key)
	return f, at, err
}

// letIn serves the join listener while this node has the control role, until ctx ends.
func (p *Platform) letIn(ctx context.Context) error {
	if p.JoinListen == nil {
		return nil
	}
	key, err := p.joinKey()
	if err != nil {
		return err
	}
	s, err := join.NewServer(key, &admitter{p: p}, p.Log)
	if err != nil {
		return err
	}
	return p.while(ctx, volant.RoleControl, func(ctx context.Context) error {
		l, err := p.JoinListen(ctx)
		if err != nil {
			return err
		}
		p.Log.Info("servers may join", "at", l.Addr().String())
		return s.Run(ctx, l)
	})
}

// againIn is how long something that failed has until it is begun again.
const againIn = 5 * time.Second

// while runs fn while this node has a role, again and again if it fails, until ctx ends.
func (p *Platform) while(ctx context.Context, role string, fn func(context.Context) error) error {
	changed, cancel := p.cat.Subscribe()
	defer cancel()
	for ctx.Err() == nil {
		if !p.has(role) {
			select {
			case <-changed:
			case <-ctx.Done():
			}
			continue
		}
		inner, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- fn(inner) }()
		var err error
		for running := true; running; {
			select {
			case err = <-ended:
				running = false
			case <-changed:
				if !p.has(role) {
					stop()
				}
			}
		}
		stop()
		if err != nil && ctx.Err() == nil {
			p.Log.Warn("part of a role failed", "role", role, "err", err, "again_in", againIn)
			select {
			case <-time.After(againIn):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// has says whether this node has a role: by its record, or before that is known by its configuration.
func (p *Platform) has(role string) bool {
	if n, ok := p.cat.Snapshot().Node(p.Node); ok {
		return n.Has(role) && !n.Tombstone
	}
	return slices.Contains(p.Roles, role)
}

// admitter lets servers in.
type admitter struct {
	p *Platform

	mu    sync.Mutex // guards guess
	guess time.Time  // when an unknown token was last put on record
}

// Removed is join's.
func (a *admitter) Removed(node volant.NodeID) bool {
	n, ok := a.p.cat.Snapshot().Node(node)
	return ok && n.Tombstone
}

// Admit is join's.
func (a *admitter) Admit(ctx context.Context, r join.Request, from netip.Addr) (join.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	token, err := a.enter(ctx, &r)
	if err != nil {
		a.refused(&r, token, from, err)
		return join.Answer{}, err
	}
	out, err := a.answer(ctx)
	if err != nil {
		return join.Answer{}, err
	}
	a.record(&r, "node_joined", fmt.Sprintf("node %s (%s) joined in region %s as %s from %s by token %s",
		r.Name, r.Node, r.Region, strings.Join(r.Roles, ","), from, token))
	a.p.Log.Info("node joined", "node", r.Node, "name", r.Name, "region", r.Region, "roles", r.Roles, "from", from, "token", token)
	return out, nil
}

// errStranger is of a token that is none.
var errStranger = volant.Errorf(volant.ErrUnauthorized, "the join token is not known, or was revoked").
	WithRemedy("make another one with `volant join-token create`")

// enter consumes a use of the token and writes the node's record in one step. Asked again by the same node with the
// same key it changes nothing of the token. It returns the token's ID, empty if it is none.
func (a *admitter) enter(ctx context.Context, r *join.Request) (string, error) {
	hash := join.HashSecret(r.Secret)
	id := hash[:join.IDLen]
	key := volant.RecordKey(volant.KindJoin, "", id)
	t, err := store.Load[volant.JoinToken](ctx, a.p.Store, key)
	if errors.Is(err, volant.ErrNotFound) || err == nil && subtle.ConstantTimeCompare([]byte(t.Hash), []byte(hash)) != 1 {
		return "", errStranger
	}
	if err != nil {
		return "", err
	}
	if err := a.named(ctx, r); err != nil {
		return id, err
	}
	var again bool
	use := store.Edit(key, func(t *volant.JoinToken) error {
		if again = slices.Contains(t.Nodes, r.Node); again {
			return good(t, r, 0)
		}
		if err := good(t, r, 1); err != nil {
			return err
		}
		t.Uses--
		t.Nodes = append(t.Nodes, r.Node)
		return nil
	})
	access := &volant.Token{Name: "node " + r.Name, Hash: r.API, Scopes: []string{"admin"}}
	access.Meta = volant.Meta{Kind: volant.KindToken, Org: control.AnyOrg, ID: r.API[:16]}
	_, err = store.Apply(ctx, a.p.Store, "join "+id, use, nodeRecord(r), sameToken(access))
	if errors.Is(err, volant.ErrNotFound) { // it was revoked in this moment
		return id, errStranger
	}
	return id, err
}

// good says why a token does not let a server in, or nil. It needs as many uses.
func good(t *volant.JoinToken, r *join.Request, uses int) error {
	switch {
	case time.Now().After(t.Expires):
		return volant.Errorf(volant.ErrUnauthorized, "the join token expired at %s", t.Expires.UTC().Format(time.RFC3339)).
			WithRemedy("make another one with `volant join-token create`")
	case t.Uses < uses:
		return volant.Errorf(volant.ErrUnauthorized, "the join token is used up").WithRemedy("make another one with `volant join-token create`")
	case t.Region != "" && t.Region != r.Region:
		return volant.Errorf(volant.ErrForbidden, "the join token is for region %s, not for %s", t.Region, r.Region).
			WithRemedy("join with --region %s, or make another token", t.Region)
	}
	for _, role := range r.Roles {
		if !slices.Contains(t.Roles, role) {
			return volant.Errorf(volant.ErrForbidden, "the join token is for the roles %s, not for %s", strings.Join(t.Roles, ","), role).
				WithRemedy("join with --roles %s, or make another token", strings.Join(t.Roles, ","))
		}
	}
	return nil
}

// named says whether another node has the name already.
func (a *admitter) named(ctx context.Context, r *join.Request) error {
	nodes, _, err := store.All[volant.Node](ctx, a.p.Store, string(volant.KindNode)+"/")
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == r.Name && n.ID != string(r.Node) {
			return volant.Errorf(volant.ErrExists, "there is a node %s already, with the ID %s", n.Name, n.ID).
				WithRemedy("name this one with --name, or remove that one with `volant nodes remove %s`", n.ID)
		}
	}
	return nil
}

// nodeRecord writes the record of a node that joins. One that is there must have the same key: nobody takes the place
// of another, and none that was removed comes back.
func nodeRecord(r *join.Request) store.Change {
	return func(ctx context.Context, rd store.Reader, actor string) (*store.Op, store.Revision, error) {
		rec := &volant.Node{Name: r.Name, Region: r.Region, Roles: r.Roles, Mesh: volant.Mesh{Key: r.Key, Endpoint: r.Endpoint}, Token: r.API[:16]}
		rec.Meta = volant.Meta{Kind: volant.KindNode, ID: string(r.Node)}
		old, _, err := store.LoadAny[volant.Node](ctx, rd, rec.Key())
		switch {
		case errors.Is(err, volant.ErrNotFound):
			return store.Creation(rec)(ctx, rd, actor)
		case err != nil:
			return nil, store.Revision{}, err
		case old.Tombstone:
			return nil, store.Revision{}, volant.Errorf(volant.ErrPrecondition, "node %s was removed from the cluster", r.Node).
				WithRemedy("run `volant cleanup`, and join with an empty data directory: a node that was removed comes back as another one")
		case old.Mesh.Key != r.Key && old.Mesh.NextKey != r.Key:
			return nil, store.Revision{}, volant.Errorf(volant.ErrExists, "there is a node %s already, which has another key", r.Node).
				WithRemedy("if it is this server and its key is lost, remove it with `volant nodes remove %s` and join with an empty data directory", r.Node)
		}
		return store.Edit(rec.Key(), func(n *volant.Node) error {
			n.Name, n.Region, n.Roles, n.Token = rec.Name, rec.Region, rec.Roles, rec.Token
			n.Mesh.Endpoint = rec.Mesh.Endpoint
			return nil
		})(ctx, rd, actor)
	}
}

// sameToken writes a token unless it is there.
func sameToken(t *volant.Token) store.Change {
	claim := store.Claim(t)
	return func(ctx context.Context, r store.Reader, actor string) (*store.Op, store.Revision, error) {
		op, rev, err := claim(ctx, r, actor)
		if errors.Is(err, volant.ErrExists) {
			return nil, rev, nil
		}
		return op, rev, err
	}
}

// answer is what a node is told that was let in.
func (a *admitter) answer(ctx context.Context) (join.Answer, error) {
	p := a.p
	out := join.Answer{
		Secrets: p.Secrets.Key(), Domain: p.names.domain, Stores: slices.Clone(p.Stores), External: len(p.Stores) > 0, StorePrefix: p.StorePrefix,
		Pool4: p.Pools.Pool4, Pool6: p.Pools.Pool6, Shared4: p.Pools.Shared4,
	}
	nodes, _, err := store.All[volant.Node](ctx, p.Store, string(volant.KindNode)+"/")
	if err != nil {
		return out, err
	}
	for _, n := range nodes {
		out.Nodes = append(out.Nodes, *n)
		if id := volant.NodeID(n.ID); !out.External && n.Has(volant.RoleControl) {
			out.Stores = append(out.Stores, storeURL(id))
		}
	}
	if p.CA != nil {
		if out.CACert, out.CAKey, err = p.CA.Files(); err != nil {
			return out, err
		}
	}
	return out, nil
}

// storeURL is where the member of the store of a control node is reached.
func storeURL(id volant.NodeID) string {
	return "http://" + netip.AddrPortFrom(volant.MeshAddr(id), volant.EtcdClientPort).String()
}

// refused puts a refusal on record: of an unknown token once a minute, so that who guesses pushes nothing out.
func (a *admitter) refused(r *join.Request, token string, from netip.Addr, err error) {
	a.p.Log.Warn("node was not let in", "node", r.Node, "name", r.Name, "from", from, "token", token, "err", err)
	if token == "" {
		a.mu.Lock()
		skip := time.Since(a.guess) < time.Minute
		if !skip {
			a.guess = time.Now()
		}
		a.mu.Unlock()
		if skip {
			return
		}
		token = "that is not known"
	}
	a.record(r, "node_refused", fmt.Sprintf("node %s (%s) was not let in from %s by token %s: %v", r.Name, r.Node, from, token, err))
}

func (a *admitter) record(r *join.Request, rule, text string) {
	a.p.Reasons.Add(why.Record{
		Time: time.Now(), Kind: why.Change, Org: control.AnyOrg, Rule: rule, Text: text,
		Attrs: map[string]string{"actor": "join", "node": string(r.Node)},
	})
}

// joinParts has a server that is not alone let others in, while it is a control node.
func (s *server) joinParts(ctx context.Context, p *Parts) (err error) {
	if s.cfg.Mesh.Endpoint == "" {
		return nil
	}
	if p.Endpoint, err = s.cfg.Mesh.endpoint(ctx); err != nil {
		return err
	}
	p.JoinListen = listenTCP(cmp.Or(s.cfg.Mesh.JoinListen, ":"+strconv.Itoa(int(p.Endpoint.Port()))))
	return nil
}

// listenTCP listens for servers that join.
func listenTCP(at string) func(ctx context.Context) (net.Listener, error) {
	return func(ctx context.Context) (net.Listener, error) {
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", at)
		if err != nil {
			return nil, volant.Errorf(volant.ErrUnavailable, "servers cannot join here: %v", err).
				WithRemedy("free TCP %s, or name another address with mesh.join_listen", at)
		}
		return l, nil
	}
}
