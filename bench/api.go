package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
	"github.com/volant-edge/volant/bench/stat"
	"github.com/volant-edge/volant/volanttest/live"
)

// apiConns are the connections that ask the API, each as soon as it has its answer.
const apiConns = 8

// apiSpeed measures the API of one server on its real store, with some thousand machines on record which
// never ran. The root token is bound by no rate.
func apiSpeed(ctx context.Context, b *bench) (rows []Row, err error) {
	err = b.server(ctx, func(s *live.Server) error {
		paths, err := fillAPI(ctx, b, s)
		if err != nil {
			return err
		}
		long := time.Duration(b.size(10, 2)) * time.Second
		reads, err := askAPI(ctx, s, long, func(i int) (string, string) { return http.MethodGet, paths[i%len(paths)] })
		if err != nil {
			return fmt.Errorf("reads: %w", err)
		}
		writes, err := askAPI(ctx, s, long, func(i int) (string, string) {
			verb := [...]string{"/cordon", "/uncordon"}[i/len(paths)%2]
			return http.MethodPost, paths[i%len(paths)] + verb
		})
		if err != nil {
			return fmt.Errorf("writes: %w", err)
		}
		note := fmt.Sprintf("%d machines on record, %d connections, load and server share the cores", len(paths), apiConns)
		rows = []Row{
			Row{Name: "api_reads", Value: reads.rate(), Unit: "requests/s", Spread: reads.spread(), Note: note}.atLeast(3000),
			Row{Name: "api_read_p99", Value: stat.Quantile(reads.millis, 0.99), Unit: "ms", Spread: reads.spread()}.atMost(10),
			Row{Name: "api_writes", Value: writes.rate(), Unit: "requests/s", Spread: writes.spread(), Note: note}.atLeast(300),
		}
		return nil
	})
	return rows, err
}

// fillAPI makes apps with machines and returns the paths of these.
func fillAPI(ctx context.Context, b *bench, s *live.Server) ([]string, error) {
	if _, err := s.Deploy(ctx, "api0", b.archive("testserver"), config("api0", 7000, "", "")); err != nil {
		return nil, err
	}
	rel, err := s.API.Release(ctx, "api0", 1)
	if err != nil {
		return nil, err
	}
	apps, each := 10, b.size(200, 20)
	var wg sync.WaitGroup
	var mu sync.Mutex // guards what follows
	var paths []string
	var failed error
	for n := range apps {
		app := fmt.Sprintf("api%d", n)
		if n > 0 {
			if _, err := s.API.CreateApp(ctx, app, ""); err != nil {
				return nil, err
			}
		}
		wg.Go(func() {
			for range each {
				m, err := s.API.CreateMachine(ctx, app, api.CreateMachine{SkipLaunch: true, Config: volant.MachineConfig{Image: rel.Image}})
				mu.Lock()
				failed = errors.Join(failed, err)
				paths = append(paths, "/v1/apps/"+app+"/machines/"+m.ID)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return paths, errors.Join(failed, calm(ctx, s.PID()))
}

// calm waits until a process takes less than a tenth of a core: hosts prepare new machines for a while.
func calm(ctx context.Context, pid int) error {
	for range 120 {
		before, err := ticks(pid)
		if err != nil {
			return err
		}
		if err := pause(ctx, 500*time.Millisecond); err != nil {
			return err
		}
		after, err := ticks(pid)
		if err != nil {
			return err
		}
		if after-before < 5 {
			return nil
		}
	}
	return nil // it is as calm as it gets
}

// ticks are the hundredths of a second of CPU time that a process took.
func ticks(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is short", pid)
	}
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	return user + system, errors.Join(err1, err2)
}

// asked is what came of a load.
type asked struct {
	millis []float64 // of each request
	took   time.Duration
}

func (a asked) rate() float64 { return float64(len(a.millis)) / a.took.Seconds() }

func (a asked) spread() string {
	return fmt.Sprintf("n=%d p50 %.2f p99 %.2f p99.9 %.2f ms", len(a.millis), stat.Median(a.millis), stat.Quantile(a.millis, 0.99), stat.Quantile(a.millis, 0.999))
}

// askAPI sends the requests that next names, for a time, over connections that stay.
func askAPI(ctx context.Context, s *live.Server, long time.Duration, next func(i int) (method, path string)) (asked, error) {
	addr, err := s.APIAddr()
	if err != nil {
		return asked{}, err
	}
	token, err := os.ReadFile(filepath.Join(s.Data, "root.token"))
	if err != nil {
		return asked{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, long+patience)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards what follows
	var out asked
	var failed error
	begun := time.Now()
	for c := range apiConns {
		wg.Go(func() {
			ms, err := askLoop(ctx, addr.String(), strings.TrimSpace(string(token)), begun.Add(long), func(i int) (string, string) { return next(i*apiConns + c) })
			mu.Lock()
			defer mu.Unlock()
			out.millis, failed = append(out.millis, ms...), errors.Join(failed, err)
		})
	}
	wg.Wait()
	out.took = time.Since(begun)
	return out, failed
}

func askLoop(ctx context.Context, addr, token string, end time.Time, next func(i int) (string, string)) ([]float64, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()                                          //nolint:errcheck // nothing is written after
	defer context.AfterFunc(ctx, func() { _ = c.Close() })() // ends what waits
	r := bufio.NewReaderSize(c, 64<<10)
	var out []float64
	for i := 0; time.Now().Before(end); i++ {
		method, path := next(i)
		begun := time.Now()
		if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n", method, path, addr, token); err != nil {
			return out, err
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return out, err
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close() //nolint:errcheck // it was read
		if err != nil {
			return out, err
		}
		out = append(out, float64(time.Since(begun).Microseconds())/1000)
		if res.StatusCode != http.StatusOK {
			return out, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, body)
		}
	}
	return out, nil
}
