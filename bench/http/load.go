package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

const bodySize = 1024

var request = []byte("GET /index.html HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")

// app answers each request that comes on a connection, with the least that HTTP asks for.
func app() (netip.AddrPort, func(), error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	response := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: "+strconv.Itoa(bodySize)+"\r\n\r\n"), make([]byte, bodySize)...)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c, response)
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), func() { l.Close() }, nil //nolint:errcheck // a bench
}

func serve(c net.Conn, response []byte) {
	defer c.Close() //nolint:errcheck // a bench
	buf, n := make([]byte, 8<<10), 0
	for {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		if n += m; !bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
			continue
		}
		n = 0
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}

// result is what a load saw.
type result struct {
	times []time.Duration // of the requests
	took  time.Duration
}

// load has clients send requests on a connection each.
func load(front netip.AddrPort, clients int, every, length time.Duration) (*result, error) {
	times, errs := make([][]time.Duration, clients), make([]error, clients)
	var wg sync.WaitGroup
	begun := time.Now()
	end := begun.Add(length)
	for i := range clients {
		wg.Go(func() {
			first := begun.Add(every * time.Duration(i) / time.Duration(clients))
			times[i], errs[i] = client(front, first, every, end)
		})
	}
	wg.Wait()
	r := &result{took: time.Since(begun)}
	for _, t := range times {
		r.times = append(r.times, t...)
	}
	if len(r.times) == 0 {
		errs = append(errs, errors.New("no request was answered"))
	}
	return r, errors.Join(errs...)
}

func client(front netip.AddrPort, next time.Time, every time.Duration, end time.Time) (times []time.Duration, err error) {
	c, err := net.Dial("tcp", front.String())
	if err != nil {
		return nil, err
	}
	defer c.Close() //nolint:errcheck // a bench
	if err := c.SetDeadline(end.Add(10 * time.Second)); err != nil {
		return nil, err
	}
	br := bufio.NewReaderSize(c, 8<<10)
	for time.Now().Before(end) {
		if every > 0 {
			time.Sleep(time.Until(next))
			next = next.Add(every)
		}
		begun := time.Now()
		if _, err := c.Write(request); err != nil {
			return times, err
		}
		if err := answer(br); err != nil {
			return times, err
		}
		times = append(times, time.Since(begun))
	}
	return times, nil
}

// answer reads a response of the app's.
func answer(br *bufio.Reader) error {
	line, err := br.ReadSlice('\n')
	if err != nil || !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return fmt.Errorf("status line %q: %w", line, err)
	}
	for len(line) > 2 {
		if line, err = br.ReadSlice('\n'); err != nil {
			return err
		}
	}
	if n, err := br.Discard(bodySize); err != nil {
		return fmt.Errorf("body of %d: %w", n, errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}
