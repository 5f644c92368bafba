package live

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/internal/atomicfile"
)

// Audit compares all that the running node has made, in its data directory and outside, with its records, and
// returns what is too much, missing, or has not settled yet. It asks the kernel and the file system, and of the
// node only which machines there are.
func (s *Server) Audit(ctx context.Context) ([]string, error) {
	a := &audit{s: s, node: s.Node(), machines: map[string]string{}}
	if err := a.records(ctx); err != nil {
		return nil, err
	}
	for _, check := range []func() error{a.processes, a.network, a.cgroups, a.memory, a.files, a.journal} {
		if err := check(); err != nil {
			return a.found, err
		}
	}
	a.found = append(a.found, mounts(s.Dir)...)
	return a.found, nil
}

type audit struct {
	s        *Server
	node     string
	machines map[string]string // state of each, by ID
	proxy    int
	routed   bool // an app has an IPv6 address: its pool is local
	found    []string
}

func (a *audit) say(format string, args ...any) {
	a.found = append(a.found, fmt.Sprintf(format, args...))
}

// same notes what is in one list and not in the other.
func (a *audit) same(what string, got, want []string) {
	for _, g := range got {
		if !slices.Contains(want, g) {
			a.say("%s: %s is too much", what, g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			a.say("%s: %s is missing", what, w)
		}
	}
}

// known notes what belongs to no machine.
func (a *audit) known(what string, got []string) {
	for _, g := range got {
		if a.machines[g] == "" {
			a.say("%s: %s is of no machine", what, g)
		}
	}
}

func (a *audit) in(states ...string) []string {
	var ids []string
	for id, state := range a.machines {
		if slices.Contains(states, state) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func (a *audit) records(ctx context.Context) error {
	apps, err := a.s.API.Apps(ctx)
	if err != nil {
		return err
	}
	for _, app := range apps {
		ms, err := a.s.API.Machines(ctx, app.Name)
		if err != nil {
			return err
		}
		for _, m := range ms {
			a.machines[m.ID] = m.State
			if !slices.Contains([]string{"created", "started", "suspended", "stopped", "failed"}, m.State) {
				a.say("machine %s is %s", m.ID, m.State)
			}
		}
		a.routed = a.routed || slices.ContainsFunc(app.Addresses, func(ip string) bool { return strings.Contains(ip, ":") })
	}
	nodes, err := a.s.API.Nodes(ctx)
	if err != nil {
		return err
	}
	a.proxy = nodes[0].ProxyPID
	return nil
}

// processes must be the server, one proxy, and one VMM for each awake machine.
func (a *audit) processes() error {
	var vms []string
	proxies := 0
	for _, p := range processes(a.s.Data) {
		id := machineID.FindString(strings.TrimPrefix(p.Command, a.s.Data))
		switch {
		case p.PID == a.s.PID():
		case isProxy(p):
			if proxies++; p.PID != a.proxy {
				a.say("processes: proxy %d, and the server knows %d", p.PID, a.proxy)
			}
		case strings.Contains(p.Command, "qemu") && id != "":
			if slices.Contains(vms, id) {
				a.say("processes: machine %s has more than one", id)
			}
			vms = append(vms, id)
		default:
			a.say("processes: %s", p)
		}
	}
	if proxies != 1 {
		a.say("processes: %d proxies", proxies)
	}
	a.same("processes of VMs", vms, a.in("started"))
	return nil
}

// machineID finds a machine's ID in a path.
var machineID = regexp.MustCompile(`\b[0-9a-f]{14}\b`)

// network: each tap and each member of the firewall's sets is of a machine, awake ones have theirs, and no
// address is kept for nobody.
func (a *audit) network() error {
	b, err := atomicfile.ReadChecked(filepath.Join(a.s.Data, "net.json"), 4<<20)
	if err != nil {
		return err
	}
	var state struct {
		Machines map[string]uint16 `json:"machines"`
	}
	if err := json.Unmarshal(b, &state); err != nil {
		return err
	}
	a.known("kept addresses", slices.Sorted(maps.Keys(state.Machines)))
	owner := map[string]string{}
	var need []string
	for id, n := range state.Machines {
		tap := fmt.Sprintf("v%s%04x", a.node, n)
		owner[tap] = id
		if a.machines[id] == "started" {
			need = append(need, tap)
		}
	}
	out, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		return err
	}
	tapName := regexp.MustCompile("v" + a.node + "[0-9a-f]{4}")
	taps := tapName.FindAllString(string(out), -1)
	for _, t := range taps {
		if owner[t] == "" {
			a.say("taps: %s is of no machine", t)
		}
	}
	for _, t := range need {
		if !slices.Contains(taps, t) {
			a.say("taps: %s of machine %s is missing", t, owner[t])
		}
	}
	rules, err := exec.Command("nft", "list", "table", "inet", "volant_"+a.node).CombinedOutput()
	if err != nil {
		a.say("firewall: %s", rules)
	}
	members := tapName.FindAllString(string(rules), -1)
	slices.Sort(members)
	a.same("firewall", slices.Compact(members), taps)
	return a.routes()
}

func (a *audit) routes() error {
	routes := Routes(a.node)
	switch {
	case a.routed && len(routes) != 1, !a.routed && len(routes) != 0:
		a.say("routes: %q, and an app with an IPv6 address: %v", routes, a.routed)
	}
	return nil
}

func (a *audit) cgroups() error {
	for _, dir := range Cgroups(a.node) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		var groups []string
		for _, e := range entries {
			if e.IsDir() && e.Name() != "proxy" {
				groups = append(groups, e.Name())
			}
		}
		a.same("cgroups in "+dir, groups, a.in("started"))
	}
	return nil
}

func (a *audit) memory() error {
	a.same("memory", a.list("/dev/shm/volant-"+a.node, ".mem"), a.in("started"))
	return nil
}

// list is what is in a directory, without a suffix that all of it should have.
func (a *audit) list(dir, suffix string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		a.say("%v", err)
	}
	var out []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			a.say("%s: a file %s", dir, e.Name())
			continue
		}
		out = append(out, name)
	}
	return out
}

// files of machines: an awake one has a directory of its VM, one that was ever prepared a writable disk, a
// suspended one a snapshot, and no other has any. Templates are whole.
func (a *audit) files() error {
	host := filepath.Join(a.s.Data, "host")
	a.same("vm", a.list(filepath.Join(a.s.Data, "vm", "vms"), ""), a.in("started"))
	a.known("scratch", a.list(filepath.Join(host, "scratch"), ".img"))
	for _, name := range a.list(filepath.Join(a.s.Data, "images", "tmp"), "") {
		a.say("images: %s is half-made", name)
	}
	a.known("logs", a.list(filepath.Join(host, "logs"), ""))
	var snaps []string
	for _, name := range a.list(filepath.Join(host, "snapshots"), "") {
		id, _, _ := strings.Cut(name, "-")
		if slices.Contains(snaps, id) {
			a.say("snapshots: machine %s has more than one", id)
		}
		snaps = append(snaps, id)
	}
	a.same("snapshots", snaps, a.in("suspended"))
	var dirs, records []string
	for _, name := range a.list(filepath.Join(host, "templates"), "") {
		if key, ok := strings.CutSuffix(name, ".json"); ok {
			records = append(records, key)
		} else {
			dirs = append(dirs, name)
		}
	}
	a.same("templates", dirs, records)
	return filepath.WalkDir(a.s.Data, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return nil //nolint:nilerr // it has just gone
		case strings.HasPrefix(d.Name(), ".tmp-"):
			a.say("file %s", path)
		}
		return nil
	})
}

// journal: a record for each machine, and none for others.
func (a *audit) journal() error {
	got := a.list(filepath.Join(a.s.Data, "host", "journal", "machines"), ".json")
	for _, id := range got {
		if !volant.MachineID(id).Valid() {
			a.say("journal: %s is no machine", id)
		}
	}
	a.same("journal", got, slices.Sorted(maps.Keys(a.machines)))
	return nil
}
