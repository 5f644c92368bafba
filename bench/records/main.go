// Command records measures what machines on record cost in memory while they sleep: in the store's engine, its
// local copy, the catalog and the host with the fake engine, as one server has them in one process. It prints one
// line of JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/oklog/ulid/v2"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/guest"
	"github.com/volant-edge/volant/host"
	"github.com/volant-edge/volant/microvm/fake"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

const (
	node   volant.NodeID = "0a0b0c0d"
	perApp               = 500
	image  volant.Digest = "sha256:5feceb66ffc86f38d952786c6d696c79c2dbc239dd4e91b46729d73a27fb57e9"
)

// Result is what is printed.
type Result struct {
	Machines int   `json:"machines"`
	Heap     int64 `json:"heap"`  // bytes after a collection, beyond those without machines
	Stack    int64 `json:"stack"` // bytes of stacks, likewise
}

func main() {
	n := flag.Int("n", 100_000, "how many machines")
	profile := flag.String("profile", "", "a file for the heap's profile")
	flag.Parse()
	if err := run(context.Background(), *n, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "records:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, n int, profile string) error {
	dir, err := os.MkdirTemp("/dev/shm", "volant-records-") // the disk is not what is measured
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a temporary directory
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	st, err := etcd.Open(ctx, etcd.Config{Dir: filepath.Join(dir, "etcd")})
	if err != nil {
		return err
	}
	cp, err := local.Open(local.Config{Path: filepath.Join(dir, "copy.db")})
	if err != nil {
		return err
	}
	cat := catalog.New(catalog.Config{})
	h, err := host.New(host.Config{
		Node: node, Region: "local", Epoch: 1, Dir: filepath.Join(dir, "host"), MemoryMB: 64 << 10, HostBoot: "boot", NoTemplates: true,
		Kernel: host.Kernel{Vmlinux: "vmlinux", Initrd: "initrd", Sum: "k1"}, DiskUsed: func(string) (float64, error) { return 0, nil },
	}, host.Deps{Engine: fake.New(fake.Config{World: fake.NewWorld()}), Images: images{}, Net: links{}, Cgroups: cgroups{}, Publish: cat.SetHave})
	if err != nil {
		return err
	}
	go func() { _ = st.Run(ctx) }() // they end with the process
	go func() { _ = cp.Run(ctx, st) }()
	go func() { _ = cat.Run(ctx, cp) }()
	go func() { _ = h.Run(ctx) }()
	heap, stack := memory()
	rev, err := write(ctx, st, n)
	if err != nil {
		return err
	}
	if err := follow(ctx, cat, h, rev, n); err != nil {
		return err
	}
	after, stacks := memory()
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		if err := pprof.WriteHeapProfile(f); err != nil {
			return err
		}
	}
	err = json.NewEncoder(os.Stdout).Encode(Result{Machines: n, Heap: after - heap, Stack: stacks - stack})
	runtime.KeepAlive(h)
	runtime.KeepAlive(cat)
	return err
}

func memory() (heap, stack int64) {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(m.StackInuse)
}

// write puts machines on record as a release of each app's makes them.
func write(ctx context.Context, st store.Store, n int) (rev store.Revision, err error) {
	for made := 0; made < n; {
		app := volant.NewAppID()
		var changes []store.Change
		for i := 0; i < perApp && made < n; i++ {
			changes = append(changes, store.Creation(machine(app)))
			made++
			if len(changes) == 100 || i == perApp-1 || made == n {
				if rev, err = store.Apply(ctx, st, "bench", changes...); err != nil {
					return rev, err
				}
				changes = nil
			}
		}
	}
	return rev, nil
}

func machine(app volant.AppID) *volant.Machine {
	id := volant.NewMachineID()
	m := &volant.Machine{
		Name: "m-" + string(id)[:6], Node: node, Region: "local", Run: volant.RunAuto, Launch: volant.LaunchRest, Release: 1, Image: image, Version: ulid.Make().String(),
		Config: volant.MachineConfig{
			Image:    "registry.example.com/team/web@" + string(image),
			Env:      map[string]string{"PORT": "8080", "LOG_LEVEL": "info", "PRIMARY_REGION": "local"},
			Metadata: map[string]string{volant.MetadataManaged: "scale", volant.MetadataGroup: "app", volant.MetadataReleaseVersion: "1"},
			Guest:    volant.Guest{}.WithDefaults(),
			Services: []volant.Service{{Protocol: "tcp", InternalPort: 8080, Ports: []volant.Port{
				{Port: 80, Handlers: []string{"http"}}, {Port: 443, Handlers: []string{"tls", "http"}},
			}}},
		},
	}
	m.Meta = volant.Meta{Kind: volant.KindMachine, Org: volant.OrgPersonal, App: app, ID: string(id)}
	return m
}

// restless is more goroutines than a server has whose machines all sleep.
const restless = 200

// follow tells the host its wishes, and returns when all its machines sleep prepared, and their loops with them.
func follow(ctx context.Context, cat *catalog.Catalog, h *host.Host, rev store.Revision, n int) error {
	for cat.Snapshot().Rev.Before(rev) {
		if err := pause(ctx); err != nil {
			return err
		}
	}
	var wishes []volant.Machine
	for m := range cat.Snapshot().MachinesOn(node) {
		wishes = append(wishes, *m)
	}
	if err := h.SetWishes(wishes); err != nil {
		return err
	}
	for {
		done := 0
		for _, have := range cat.Snapshot().Haves() {
			if have.State == volant.StateStopped && have.Generation > 0 {
				done++
			}
		}
		if done == n && runtime.NumGoroutine() < restless {
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("%d of %d machines sleep: %w", done, n, err)
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(200 * time.Millisecond):
		return nil
	}
}

type images struct{}

func (images) Rootfs(context.Context, volant.Digest) (host.Rootfs, error) {
	return host.Rootfs{Path: "/dev/null", Type: "erofs", Entrypoint: []string{"serve"}}, nil
}
func (images) Scratch(context.Context, string, int) error { return nil }

type links struct{}

func (links) Attach(context.Context, volant.MachineID, volant.OrgID) (host.Link, error) {
	return host.Link{
		Tap: "tap", MAC: net.HardwareAddr{0x52, 0x54, 0, 0x77, 1, 2}, Net: guest.Net{Addr: netip.MustParsePrefix("172.27.0.1/32")},
	}, nil
}
func (links) Detach(context.Context, volant.MachineID) error { return nil }
func (links) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) {
	return nil, nil
}

type cgroups struct{}

func (cgroups) Add(context.Context, volant.MachineID, int) error           { return nil }
func (cgroups) Limit(context.Context, volant.MachineID, host.Limits) error { return nil }
func (cgroups) Pin(int, int) error                                         { return nil }
func (cgroups) Remove(context.Context, volant.MachineID) error             { return nil }
func (cgroups) Sweep(context.Context, func(volant.MachineID) bool) ([]string, error) {
	return nil, nil
}
