package lab

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/volant-edge/volant/lab/wire"
)

// Status is a lab as it is.
type Status struct {
	Name  string       `json:"name"`
	Dir   string       `json:"dir"`
	Ready bool         `json:"ready"` // it was built to its end
	Bare  bool         `json:"bare,omitempty"`
	Nodes []NodeStatus `json:"nodes"`
	Wires []WireStatus `json:"wires"`
	Cuts  []Cut        `json:"cuts"`
	// WireError says why nobody holds the wires.
	WireError string `json:"wire_error,omitempty"`
}

// NodeStatus is a server as it is.
type NodeStatus struct {
	Name      string     `json:"name"`
	Region    string     `json:"region"`
	ID        string     `json:"id,omitempty"`
	State     string     `json:"state"` // running, killed, or down: it has no server
	Roles     []string   `json:"roles"` // it started with
	Engine    string     `json:"engine"`
	Addr4     netip.Addr `json:"addr4"`
	Addr6     netip.Addr `json:"addr6"`
	API       string     `json:"api,omitempty"` // in its namespace
	Data      string     `json:"data"`
	ServerPID int        `json:"server_pid,omitempty"`
	ProxyPID  int        `json:"proxy_pid,omitempty"`
	MeshPID   int        `json:"mesh_pid,omitempty"`
	Processes int        `json:"processes"`
}

// WireStatus is a wire as it is.
type WireStatus struct {
	A       string        `json:"a"`
	B       string        `json:"b"`
	Delay   time.Duration `json:"delay"` // one way
	Loss    float64       `json:"loss"`
	Cut     bool          `json:"cut"`
	Passed  uint64        `json:"passed"`
	Dropped uint64        `json:"dropped"`
}

// Status looks at the lab.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	s, err := loadState(l.plan.Dir)
	if err != nil {
		return Status{}, err
	}
	out := Status{Name: l.plan.Name, Dir: l.plan.Dir, Ready: s.Ready, Bare: l.plan.Bare, Nodes: []NodeStatus{}, Wires: []WireStatus{}, Cuts: append([]Cut{}, s.Faults.Cuts...)}
	for _, n := range l.Nodes() {
		ns, err := n.status(&s.Faults)
		if err != nil {
			return out, err
		}
		out.Nodes = append(out.Nodes, ns)
	}
	var reports []wire.Report
	if len(l.plan.wires()) > 0 {
		if reports, err = wire.Apply(ctx, l.file(wireSocket)); err != nil {
			out.WireError = err.Error()
			p := newPlan(s.Config)
			for _, spec := range p.wireSpecs(s.Faults) {
				reports = append(reports, wire.Report{Spec: spec})
			}
		}
	}
	for _, r := range reports {
		a, b, _ := strings.Cut(r.Name, "-")
		out.Wires = append(out.Wires, WireStatus{a, b, r.Delay, r.Loss, r.Cut, r.Passed, r.Dropped})
	}
	return out, nil
}

func (n *Node) status(f *faults) (NodeStatus, error) {
	s := NodeStatus{
		Name: n.Name, Region: n.Region, ID: string(n.ID()), State: "down", Roles: n.lab.plan.roles(n.nodePlan),
		Engine: n.lab.plan.Engine, Addr4: n.Addr4, Addr6: n.Addr6, Data: n.Data(),
	}
	ps, err := n.Processes()
	if err != nil {
		return s, err
	}
	s.Processes = len(ps)
	for _, p := range ps {
		switch p.role() {
		case "server":
			s.ServerPID, s.State = p.PID, "running"
		case "proxy":
			s.ProxyPID = p.PID
		case "mesh":
			s.MeshPID = p.PID
		}
	}
	if slices.Contains(f.Dead, n.Name) {
		s.State = "killed"
	}
	if s.State == "running" {
		if b, err := os.ReadFile(filepath.Join(n.Data(), "api.addr")); err == nil {
			s.API = strings.TrimSpace(string(b))
		}
	}
	return s, nil
}
