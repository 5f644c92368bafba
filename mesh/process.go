package mesh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/internal/daemon"
)

const (
	lockName   = "mesh" // in the data directory; holds the process ID
	socketName = "mesh.sock"

	// memoryMost bounds what wireguard-go keeps in buffers, which it never gives back by itself.
	memoryMost = 160 << 20
	// threadsMost is how many CPUs the process uses: beyond that more of them make it no faster.
	threadsMost = 8
)

// Process configures the mesh as a process of its own.
type Process struct {
	Data    string // data directory, which a server has made
	Version string
	Log     *slog.Logger
}

// Hello is what a mesh process says of itself.
type Hello struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
}

// Main runs the mesh process until ctx ends or it is asked to remove its device. One runs per data directory; it
// starts from the last Config it had. When it ends the interface stays, for its successor.
func Main(ctx context.Context, cfg Process) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
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
	debug.SetMemoryLimit(memoryMost)
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), threadsMost))
	dev, err := NewUser(d, cfg.Log)
	if err != nil {
		return err
	}
	defer dev.Close()
	last, ok, err := Last(d)
	if err == nil && ok {
		err = dev.Configure(ctx, last)
	}
	if err != nil {
		cfg.Log.Error("the last configuration is of no use; waiting for the server's", "err", err)
	}
	l, err := listenControl(d)
	if err != nil {
		return err
	}
	cfg.Log.Info("mesh started", "pid", os.Getpid(), "peers", len(last.Peers), "configured", ok)
	return serve(ctx, dev, l, Hello{PID: os.Getpid(), Version: cfg.Version})
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

// serve answers on the control socket, and ends with ctx or with the device.
func serve(ctx context.Context, dev Device, l net.Listener, hello Hello) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { answer(w, hello, nil) })
	mux.HandleFunc("GET /end", func(w http.ResponseWriter, r *http.Request) { // answered by the end of the process
		select {
		case <-r.Context().Done():
		case <-ctx.Done():
		}
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		st, err := dev.Status(r.Context())
		answer(w, st, err)
	})
	mux.HandleFunc("PUT /config", func(w http.ResponseWriter, r *http.Request) {
		var cfg Config
		err := json.NewDecoder(io.LimitReader(r.Body, configMost)).Decode(&cfg)
		if err == nil {
			err = dev.Configure(r.Context(), cfg)
		}
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /remove", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, dev.Remove(r.Context()))
		end()
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	var g errgroup.Group
	g.Go(func() error { return dev.Run(ctx) })
	g.Go(func() error {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			end()
			return fmt.Errorf("control socket: %w", err)
		}
		return nil
	})
	<-ctx.Done()
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // for the last answer to leave
	defer cancel()
	if err := srv.Shutdown(bound); err != nil {
		_ = srv.Close() // somebody waits for our end
	}
	return g.Wait()
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		v = volant.ToWire(err)
	}
	_ = json.NewEncoder(w).Encode(v) // who asked may be gone
}
