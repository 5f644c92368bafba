package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/cert"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/join"
	"github.com/volant-edge/volant/secret"
)

// memberFile holds, in the data directory, what the cluster told this server when it joined.
const memberFile = "join.json"

// maxMember bounds the file.
const maxMember = 64 << 20

// membership is what a server that joined a cluster knows of it before it has the intent.
type membership struct {
	Server   string         `json:"server"`  // where it joined
	Cluster  string         `json:"cluster"` // fingerprint, hex
	Name     string         `json:"name"`
	Region   volant.Region  `json:"region"`
	Roles    []string       `json:"roles"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Domain   string         `json:"domain"`
	Pool4    netip.Prefix   `json:"pool4"`
	Pool6    netip.Prefix   `json:"pool6"`
	Shared4  netip.Addr     `json:"shared4"`
	Stores   []string       `json:"stores"`
	External bool           `json:"external,omitempty"`
	// StorePrefix is of the keys in an external etcd.
	StorePrefix string        `json:"store_prefix,omitempty"`
	Nodes       []volant.Node `json:"nodes"`             // all there were
	Removed     bool          `json:"removed,omitempty"` // the cluster threw it out
}

// errRemoved says that this server is of no cluster any more.
func errRemoved(node volant.NodeID) error {
	return volant.Errorf(volant.ErrPrecondition, "this server (node %s) was removed from its cluster and takes part no longer", node).
		WithRemedy("run `volant cleanup` to end its proxy and machines; to join again, begin with an empty data directory and a new join token")
}

func readMembership(path string) (*membership, error) {
	b, err := atomicfile.ReadChecked(path, maxMember)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var m membership
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return nil, volant.Errorf(volant.ErrInvalid, "what is known of the cluster cannot be read from %s: %v", path, err).
			WithRemedy("remove the file and join again with the same data directory and a new join token")
	}
	return &m, nil
}

func (m *membership) write(path string) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("keep what is known of the cluster: %w", err)
	}
	return atomicfile.WriteChecked(path, b, 0o600)
}

// enter makes this server a member of a cluster, if it is to be one of another server's: once, and after a crash in
// the middle again. given is the configuration as the operator wrote it.
func (s *server) enter(ctx context.Context, given Config) error {
	path := s.dir.Path(memberFile)
	m, err := readMembership(path)
	if err != nil {
		return err
	}
	if m == nil && s.cfg.Join.Server == "" {
		return s.first()
	}
	if m == nil {
		if m, err = s.join(ctx); err != nil {
			return err
		}
		if err := m.write(path); err != nil {
			return err
		}
	}
	if m.Removed {
		return errRemoved(s.dir.Node())
	}
	s.member = m
	s.cfg.Name, s.cfg.Region, s.cfg.Roles = m.Name, m.Region, m.Roles
	s.cfg.Domain = cmp.Or(given.Domain, m.Domain, s.cfg.Domain)
	if !given.Edge.Pool4.IsValid() && m.Pool4.IsValid() {
		s.cfg.Edge.Pool4 = m.Pool4
	}
	if !given.Edge.Pool6.IsValid() && m.Pool6.IsValid() {
		s.cfg.Edge.Pool6 = m.Pool6
	}
	if !given.Edge.Shared4.IsValid() {
		s.cfg.Edge.Shared4 = m.Shared4
	}
	if s.cfg.Mesh.Endpoint == "" {
		s.cfg.Mesh.Endpoint = m.Endpoint.String()
	}
	if given.Region != "" && given.Region != m.Region {
		s.cfg.Log.Warn("a server stays in the region in which it joined", "region", m.Region, "configured", given.Region)
	}
	return nil
}

// first says whether this server can be the first of its cluster.
func (s *server) first() error {
	if len(s.cfg.Roles) > 0 && !slices.Contains(s.cfg.Roles, volant.RoleControl) && !s.founded() {
		return volant.Invalidf("the roles of the first server of a cluster are %s, without control: nobody would keep the intent", strings.Join(s.cfg.Roles, ",")).
			WithRemedy("add control, or join a cluster with --join")
	}
	return nil
}

// founded says whether this data directory has an intent of its own.
func (s *server) founded() bool {
	for _, name := range []string{s.dir.Path("etcd", "member"), s.dir.Path("intent", "copy.db")} {
		if _, err := os.Stat(name); err == nil {
			return true
		}
	}
	return false
}

// joinAgain is how long a control node that does not answer has until it is asked again.
const joinAgain = 5 * time.Second

// join asks to be let in and puts down what it is given. The file of the membership is the caller's to write, last.
func (s *server) join(ctx context.Context) (*membership, error) {
	if s.founded() {
		return nil, volant.Errorf(volant.ErrPrecondition, "the data directory %s is of a cluster of its own", s.dir.Root()).
			WithRemedy("join with an empty one; apps do not move from cluster to cluster")
	}
	token, err := s.cfg.Join.token()
	if err != nil {
		return nil, err
	}
	req, err := s.joinRequest(ctx)
	if err != nil {
		return nil, err
	}
	at, _, err := hostPort(s.cfg.Join.Server)
	if err != nil {
		return nil, err
	}
	var a join.Answer
	for {
		if a, err = (join.Asker{}).Ask(ctx, at, token, req); err == nil || !errors.Is(err, volant.ErrUnavailable) || ctx.Err() != nil {
			break
		}
		s.cfg.Log.Warn("not joined yet", "server", at, "err", err, "again_in", joinAgain)
		select {
		case <-ctx.Done():
		case <-time.After(joinAgain):
		}
	}
	if err != nil {
		return nil, err
	}
	if err := s.install(&a); err != nil {
		return nil, err
	}
	m := &membership{
		Server: at, Cluster: hex.EncodeToString(token.Cluster[:]), Domain: a.Domain, Pool4: a.Pool4, Pool6: a.Pool6, Shared4: a.Shared4,
		Stores: a.Stores, External: a.External, StorePrefix: a.StorePrefix, Nodes: a.Nodes,
	}
	for i := range a.Nodes {
		if n := &a.Nodes[i]; volant.NodeID(n.ID) == s.dir.Node() {
			m.Name, m.Region, m.Roles, m.Endpoint = n.Name, n.Region, n.Roles, n.Mesh.Endpoint
		}
	}
	s.cfg.Log.Info("joined", "server", at, "node", s.dir.Node(), "region", m.Region, "roles", m.Roles, "nodes", len(m.Nodes))
	return m, nil
}

func (s *server) joinRequest(ctx context.Context) (join.Request, error) {
	var r join.Request
	key, err := s.meshKey()
	if err != nil {
		return r, err
	}
	root, err := s.rootToken()
	if err != nil {
		return r, err
	}
	r = join.Request{
		Node: s.dir.Node(), Name: s.name(), Region: s.cfg.Region, Roles: s.cfg.Roles, Key: key, API: control.HashToken(root), Software: s.cfg.Version,
	}
	if len(r.Roles) == 0 {
		r.Roles = []string{volant.RoleEdge, volant.RoleHost}
	}
	r.Endpoint, err = s.cfg.Mesh.endpoint(ctx)
	return r, err
}

// install puts down the keys that the cluster gave.
func (s *server) install(a *join.Answer) error {
	if err := secret.Install(s.dir.Root(), a.Secrets); err != nil {
		return err
	}
	if len(a.CACert) == 0 {
		return nil
	}
	dir, err := s.dir.Sub("ca")
	if err != nil {
		return err
	}
	return cert.Install(dir, a.CACert, a.CAKey)
}

// token is the join token that the configuration names.
func (c *JoinConfig) token() (join.Token, error) {
	text := c.Token
	if text == "" && c.TokenFile != "" {
		b, err := os.ReadFile(c.TokenFile)
		if err != nil {
			return join.Token{}, volant.Invalidf("join token: %v", err)
		}
		text = string(b)
	}
	if text == "" {
		return join.Token{}, volant.Invalidf("a server joins by a token").
			WithRemedy("make one with `volant join-token create` on a control node, and give it with --token or --token-file")
	}
	return join.ParseToken(text)
}

// hostPort reads HOST:PORT; the port may be left out.
func hostPort(text string) (string, uint16, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = strings.Trim(text, "[]"), strconv.Itoa(volant.MeshPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if _, aerr := netip.ParseAddr(host); err != nil || n == 0 || strings.ContainsAny(host, " /[]") || strings.Contains(host, ":") && aerr != nil {
		return "", 0, volant.Invalidf("%.80q: write HOST:PORT, such as 192.0.2.1:%d", text, volant.MeshPort)
	}
	return net.JoinHostPort(host, port), uint16(n), nil
}

// endpoint is where other servers reach this one. Without a host it is the unspecified address: the one that is seen.
func (c *MeshConfig) endpoint(ctx context.Context) (netip.AddrPort, error) {
	if c.Endpoint == "" {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), volant.MeshPort), nil
	}
	at, port, err := hostPort(c.Endpoint)
	if err != nil {
		return netip.AddrPort{}, err
	}
	host, _, err := net.SplitHostPort(at)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		return netip.AddrPortFrom(netip.IPv6Unspecified(), port), nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(ips) == 0 {
		return netip.AddrPort{}, volant.Invalidf("mesh.endpoint %q: %v", c.Endpoint, err).WithRemedy("write an address and a port")
	}
	return netip.AddrPortFrom(ips[0].Unmap(), port), nil
}
