package contract

import (
	"bytes"
	"io"
	"net/http"
)

// Handler passes requests on to h and tells report what is violated.
func (c *Checker) Handler(h http.Handler, report func(violation string)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var ask bytes.Buffer
		if r.Body != nil {
			r.Body = body{io.TeeReader(r.Body, &ask), r.Body}
		}
		u := *r.URL
		tee := &tee{ResponseWriter: w, status: http.StatusOK}
		h.ServeHTTP(tee, r)
		if r.Context().Err() != nil {
			return // what was cut off has no form
		}
		x := Exchange{
			Method: r.Method, URL: &u, Ask: ask.Bytes(), Status: tee.status, Type: tee.Header().Get("Content-Type"), Body: tee.body.Bytes(),
		}
		for _, v := range c.Check(x) {
			report(v)
		}
	})
}

type body struct {
	io.Reader
	io.Closer
}

// tee keeps what is written.
type tee struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (t *tee) WriteHeader(code int) {
	t.status = code
	t.ResponseWriter.WriteHeader(code)
}

func (t *tee) Write(b []byte) (int, error) {
	t.body.Write(b)
	return t.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the writer below.
func (t *tee) Unwrap() http.ResponseWriter { return t.ResponseWriter }
