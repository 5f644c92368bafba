package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/atomicfile"
	"github.com/volant-edge/volant/internal/daemon"
)

const (
	lockName   = "proxy" // in the data directory; holds the process ID
	socketName = "proxy.sock"
	stateFile  = "table" // in the sub-directory proxy
	saveEvery  = 100 * time.Millisecond
)

// Process configures the proxy as a process of its own.
type Process struct {
	Data    string // data directory, which a server has made
	Version string
	// Grace bounds how long connections may go on after the process was asked to end; 10 s.
	Grace time.Duration
	// Late is how much later the proxy hears what other nodes tell it; for tests.
	Late time.Duration
	Log  *slog.Logger
}

// saved is what a proxy starts from when nobody tells it more.
type saved struct {
	Table Table       `json:"table"`
	Seals []savedSeal `json:"seals,omitempty"`
}

type savedSeal struct {
	Machine volant.MachineID `json:"machine"`
	Epoch   uint64           `json:"epoch"`
	Seq     uint64           `json:"seq"`
}

// Main runs the proxy process until ctx ends or a client asks it to shut down. One runs per data
// directory; it starts from the last Table it was given.
func Main(ctx context.Context, cfg Process) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 10 * time.Second
	}
	d, err := datadir.Attach(cfg.Data)
	if err != nil {
		return err
	}
	lock, err := d.Lock(lockName)
	if err != nil {
		return err
	}
	defer lock.Close() //nolint:errcheck // the process ends
	epoch, err := d.Next(datadir.CounterEpoch)
	if err != nil {
		return err
	}
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	pcfg := Config{Epoch: epoch, Version: cfg.Version, Binary: binary, Log: cfg.Log}
	if cfg.Late > 0 {
		cfg.Log.Warn("what other nodes tell is heard late, for a test", "by", cfg.Late)
		pcfg.Packet = latePacket(cfg.Late)
	}
	p, err := New(pcfg)
	if err != nil {
		return err
	}
	dir, err := d.Sub("proxy")
	if err != nil {
		return err
	}
	st := &keeper{p: p, path: dir + "/" + stateFile, log: cfg.Log, changed: make(chan struct{}, 1)}
	st.load()
	l, err := listenControl(d)
	if err != nil {
		return err
	}
	return run(ctx, cfg, p, st, l)
}

func listenControl(d *datadir.Dir) (net.Listener, error) {
	path, err := d.Socket(socketName)
	if err != nil {
		return nil, err
	}
	l, err := daemon.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// run runs the parts of the process, and ends them in order: accepting, connections, control.
func run(ctx context.Context, cfg Process, p *Proxy, st *keeper, l net.Listener) error {
	asked, ask := context.WithCancel(ctx)
	defer ask()
	live, kill := context.WithCancel(context.Background())
	defer kill()
	g, live := errgroup.WithContext(live)
	control := &api{p: p, log: cfg.Log, tabled: st.ring, shutdown: func(context.Context) error { ask(); return nil }}
	g.Go(func() error { return p.Run(live) })
	g.Go(func() error { return control.serve(live, l) })
	g.Go(func() error { return st.run(live) })
	g.Go(func() error {
		select {
		case <-asked.Done():
		case <-live.Done():
			return nil
		}
		cfg.Log.Info("proxy stops", "connections", p.open.Load(), "grace", cfg.Grace)
		bound, cancel := context.WithTimeout(live, cfg.Grace)
		defer cancel()
		if err := p.Shutdown(bound); err != nil {
			cfg.Log.Warn("connections are cut by the end of the proxy", "err", err)
		}
		kill()
		return nil
	})
	cfg.Log.Info("proxy started", "epoch", p.cfg.Epoch, "pid", os.Getpid(), "table", p.table.Version)
	return g.Wait()
}

// keeper keeps the last Table and the seals on disk.
type keeper struct {
	p       *Proxy
	path    string
	log     *slog.Logger
	changed chan struct{} // capacity 1
}

func (s *keeper) ring() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// load gives the proxy what was saved. A damaged file is left out: the server will tell again.
func (s *keeper) load() {
	b, err := atomicfile.ReadChecked(s.path, frameMost)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	var v saved
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	if err == nil {
		s.p.restoreSeals(v.Seals)
		err = s.p.SetTable(context.Background(), v.Table)
	}
	if err != nil {
		s.log.Error("the table on disk is of no use; waiting for the server's", "path", s.path, "err", err)
	}
}

// run writes changes down until ctx ends, and the last of them then.
func (s *keeper) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			select {
			case <-s.changed:
				s.save()
			default:
			}
			return nil
		case <-s.changed:
			s.save()
		}
		t := time.NewTimer(saveEvery)
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		t.Stop()
	}
}

func (s *keeper) save() {
	b, err := json.Marshal(s.p.saved())
	if err == nil {
		err = atomicfile.WriteChecked(s.path, b, 0o600)
	}
	if err != nil {
		s.log.Error("table was not saved", "path", s.path, "err", err)
	}
}

func (p *Proxy) saved() saved {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := saved{Table: p.table}
	for id, m := range p.seals {
		v.Seals = append(v.Seals, savedSeal{Machine: id, Epoch: m.epoch, Seq: m.seq})
	}
	return v
}

func (p *Proxy) restoreSeals(seals []savedSeal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range seals {
		p.seals[s.Machine] = sealMark{epoch: s.Epoch, seq: s.Seq, listed: time.Now()}
	}
}
